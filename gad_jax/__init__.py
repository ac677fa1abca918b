"""Generative Adversarial Distillation (arXiv:2511.10643) of text-only teachers, in JAX.

The folders are layers; each imports only from those below it. From below: `base` and `types`,
`settings`, `distributed`, `models` and `data`, `core`, `rollout` and `teacher`, `metrics`,
`training`. On top are the commands, one module or folder each (`gad_jax.__main__` lists them).

For notebooks and programs, `gad_jax.Student`, `gad_jax.Discriminator`, `gad_jax.Run`,
`gad_jax.write_rows` and `gad_jax.register_family` are those of `training.library`, and a mistake
raises `gad_jax.UserError`; they are loaded when they are first named.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gad_jax.base.errors import UserError
    from gad_jax.training.library import Discriminator, Run, Student, register_family, write_rows

__all__ = ["Discriminator", "Run", "Student", "UserError", "register_family", "write_rows"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # PEP 562: commands answer --help before jax is loaded
    if name in __all__:
        return getattr(importlib.import_module("gad_jax.training.library"), name)
    raise AttributeError(f"module 'gad_jax' has no attribute {name!r}")

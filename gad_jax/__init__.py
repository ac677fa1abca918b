"""Generative Adversarial Distillation (arXiv:2511.10643) of text-only teachers, in JAX.

The folders are layers; each imports only from those below it. From below: `base` and `types`,
`settings`, `distributed`, `models` and `data`, `core`, `rollout` and `teacher`, `metrics`,
`training`. On top are the commands, one module or folder each (`gad_jax.__main__` lists them).
"""

__version__ = "0.1.0"

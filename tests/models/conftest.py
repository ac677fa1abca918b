"""Random networks of every family, as directories and as parameters."""

import functools
from pathlib import Path
from typing import Any, get_args

import pytest

from gad_jax.models import weights
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.models.builtin.untrained import Family
from gad_jax.models.carried import Carried
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Params
from tests.models import networks
from tests.models.files import carried_from
from tests.models.record_reference import write_variant


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns a function: name of a variant → (directory, config, params)."""

    @functools.cache
    def load(name: str) -> tuple[Path, DecoderConfig, Params]:
        directory = tmp_path_factory.mktemp(name)
        write_variant(directory, name)
        return directory, *weights.load(directory)

    return load


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns a function: arguments of write_tiny → a directory, not to be changed."""

    @functools.cache
    def write(family: str = "llama", tied: bool = True, **options: Any) -> Path:
        directory = tmp_path_factory.mktemp(family)
        if family not in get_args(Family):
            return networks.write(directory / "model", networks.of_family(family, tied))
        write_tiny(directory, family, tied, **options)
        return directory

    return write


@pytest.fixture(scope="module")
def carried(tiny: Any) -> Carried:
    """The tokenizer of a tiny llama, and where an export takes the other files from."""
    return carried_from(tiny())

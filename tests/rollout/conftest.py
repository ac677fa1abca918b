"""Models on one device, and what one of them answers."""

import functools
from typing import Any

import jax
import pytest

from gad_jax.distributed.mesh import make_mesh
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.types import Rollout
from tests.rollout.model import Model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns a function: family → Model on one device."""
    mesh = make_mesh(devices=jax.devices()[:1])

    @functools.cache
    def load(family: str) -> Model:
        directory = tmp_path_factory.mktemp(family)
        write_tiny(directory, family, tied=family != "qwen2")
        return Model(directory, mesh)

    return load


@pytest.fixture(scope="module")
def llama(models: Any) -> Model:
    return models("llama")


@pytest.fixture(scope="module")
def sampled(llama: Model) -> Rollout:
    """What `llama` answers to PROMPTS, three times each, none of them ended."""
    return llama.answer()

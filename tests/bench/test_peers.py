"""Other engines: absent ones are left out, and a GGUF file that cannot be used is refused."""

import importlib.util
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.bench import peers


def test_torch_computes_where_jax_does() -> None:
    assert peers.torch_device() == ("cpu", "float32")


def test_absent_engines_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peers.transformers(Path("nowhere")) is None
    assert peers.llama_cpp("") is None
    with pytest.raises(UserError, match=r"gguf=model\.gguf: llama-cpp-python is not installed"):
        peers.llama_cpp("model.gguf")

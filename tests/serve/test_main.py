"""The settings of the server, and its mistakes."""

from collections.abc import Callable
from pathlib import Path

from gad_jax.serve import __main__ as serve

pytest_plugins = ["tests.run_fixtures"]


def test_settings_that_cannot_be(tiny_run: Path, refused: Callable[..., str]) -> None:
    model = f"--model={tiny_run}"
    assert "A_KEY is not set" in refused(serve.main, model, "--key_variable=A_KEY")
    assert "context=0 must be 1 or more" in refused(serve.main, model, "--context=0")
    assert "lower --slots or --context" in refused(serve.main, model, "--slots=100000000")
    assert "needs so many devices" in refused(serve.main, model, "--tensor=64")
    assert "no keys" in refused(serve.main, "--protocol=jetstream", "--key_variable=A_KEY")

"""The flags of `evaluate human`, and its results."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gad_jax.evaluate import __main__ as evaluate

pytest_plugins = ["tests.run_fixtures"]


def test_mistakes_are_sentences(
    directory: Path, refused: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    human = ("human", directory, "--results")
    assert "name two of before, gad, teacher" in refused(evaluate.main, *human, "--students=gad,x")
    assert "has 1 names; two are compared" in refused(evaluate.main, *human, "--students=gad")
    assert "is not there; there are set" in refused(evaluate.main, *human, "--prompts=x")
    assert "has no answers" in refused(evaluate.main, "human", directory / "set", "--results")
    assert evaluate.main(["human", str(directory), "--results"]) == 0
    assert "votes: none" in capfd.readouterr().out

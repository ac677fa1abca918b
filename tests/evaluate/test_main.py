"""The flags of `evaluate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gad_jax.evaluate import __main__ as evaluate

pytest_plugins = ["tests.run_fixtures"]


def test_mistakes_are_one_sentence(
    sets: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    def ask(*flags: object) -> str:
        return refused(evaluate.main, f"--out={tmp_path}/out", *flags)

    assert "is not a run directory" in ask(tmp_path)
    assert "missing.jsonl" in ask("--model=random-tiny", "--prompts=missing.jsonl")
    assert "did you mean 'random-tiny'?" in ask("--model=random-tyni", "--max_new_tokens=8")
    assert "twice" in ask("--model=random-tiny,random-tiny")
    assert "max_new_tokens=0" in ask("--model=random-tiny", "--max_new_tokens=0")
    assert "a file's" in ask("--model=a/b=random-tiny")
    asked = ("--model=random-tiny", f"--prompts={sets}/question.jsonl", "--max_new_tokens=4")
    assert evaluate.main([f"--out={tmp_path}/out", *asked]) == 0
    capfd.readouterr()
    assert "seed: 0 → 1" in ask(*asked, "--seed=1")
    for flag in ("--prompts=missing.jsonl", "--samples=2", "--data.prompt=q"):
        assert "is for students that answer prompts" in ask(tmp_path, flag)
    assert refused(evaluate.main) == "nothing to evaluate; name a run, or students with --model"


def test_help_says_the_defaults(command: Callable[..., Any]) -> None:
    done = command("evaluate", "--help")
    assert done.returncode == 0
    assert "bundled:heldout" in done.stdout

"""The flags of `evaluate`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gad_jax.evaluate import __main__ as evaluate

pytest_plugins = ["tests.run_fixtures"]
QUESTIONS = ("Name a fruit.", "Say hello to Anna.", "What is 2 + 2?")
TEACHER = "An apple, I say."


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with teacher rows, with one too long for the tiny student, and Vicuna's form."""
    directory = tmp_path_factory.mktemp("sets")
    rows = [
        {"id": f"q{n}", "prompt": q, "teacher_response": TEACHER} for n, q in enumerate(QUESTIONS)
    ]
    rows.insert(1, {"id": "long", "prompt": "x" * 5000, "teacher_response": TEACHER})
    vicuna = [{"question_id": n, "text": q, "category": "c"} for n, q in enumerate(QUESTIONS[:2])]
    for name, content in (("lmsys", rows), ("question", vicuna)):
        path = directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return directory


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
    assert refused(evaluate.main) == "nothing to evaluate; name a run, or students with --model"


def test_help_says_the_defaults(command: Callable[..., Any]) -> None:
    done = command("evaluate", "--help")
    assert done.returncode == 0
    assert "bundled:heldout" in done.stdout

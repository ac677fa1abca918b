"""Prompt sets as files."""

import json
from pathlib import Path

import pytest

from tests.evaluate.sets import QUESTIONS, TEACHER


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

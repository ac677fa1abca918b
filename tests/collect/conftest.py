"""The files that the tests of this folder read."""

import json
from pathlib import Path

import pytest

from tests.collect.harness import write_prompts
from tests.collect.rows import LINES


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.txt")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "heldout.jsonl"
    path.write_text(json.dumps({"prompt": "held out question", "teacher_response": "a"}) + "\n")
    return path

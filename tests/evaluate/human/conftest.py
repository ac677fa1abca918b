"""What gad_jax.evaluate writes for two students."""

import json
from pathlib import Path

import pytest

from tests.evaluate.human.harness import COUNT, EVIL


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What gad_jax.evaluate writes for two students."""
    (tmp_path / "set").mkdir()
    for label in ("before", "gad"):
        lines = [
            {
                "id": f"q{n}",
                "prompt": f"Prompt {n}? {EVIL}",
                "teacher": "T",
                "teacher_tokens": 1,
                "answers": [{"text": f"text of {label[0]} {n} {EVIL}", "tokens": 5}],
            }
            for n in range(COUNT)
        ]
        about = {"label": label, "prompts": "set", "origin": "weights"}
        (tmp_path / "set" / f"{label}.json").write_text(json.dumps(about))
        (tmp_path / "set" / f"{label}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )
    return tmp_path

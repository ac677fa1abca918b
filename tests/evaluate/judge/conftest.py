"""A run that a judge can be asked about."""

from pathlib import Path

import pytest

from gad_jax.metrics import heldout


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with two evaluations of 12 prompts."""
    run = tmp_path / "run"
    (run / "evaluations").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    for step, label in enumerate(("before", "after gad")):
        examples = [
            {
                "prompt": f"Prompt {n}?",
                "teacher": f"T{n}",
                "student": f"{label} {n}",
                "length": 3 + step,
                "teacher_length": 4,
                "finished": True,
                "rouge_l": 0.5,
            }
            for n in range(12)
        ]
        result = heldout.HeldoutResult(label, step, {}, examples)
        (run / "evaluations" / f"{step}.json").write_text(result.to_json())
    return run

"""How long a run takes."""

from dataclasses import replace
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.plan import duration
from gad_jax.plan.estimate import Phase, Step
from gad_jax.settings.config import Config
from gad_jax.settings.sections import Batch, Data

CONFIG = Config(stage="warmup,gad", batch=Batch(prompts=8))


def test_epochs_need_rows_and_steps_do_not(tmp_path: Path) -> None:
    unknown = replace(CONFIG, data=Data(train="org/name"))
    assert duration.steps_of(unknown, 0) is None
    assert duration.steps_of(unknown, 83) == {"warmup": 10, "gad": 20}  # 1 and 2 epochs
    stages = (replace(getattr(CONFIG, name), steps=7) for name in ("warmup", "gad"))
    set_steps = replace(unknown, **dict(zip(("warmup", "gad"), stages, strict=True)))
    assert duration.steps_of(set_steps, 0) == {"warmup": 7, "gad": 7}


def test_rows_of_local_files_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n' * 1 + '{"prompt": "c", "response": "d"}\n')
    config = replace(CONFIG, batch=Batch(prompts=1), data=Data(train=str(file)))
    assert duration.steps_of(config, 0) == {"warmup": 2, "gad": 4}
    half = replace(config, data=Data(train=str(file), heldout="50%"))
    assert duration.steps_of(half, 0) == {"warmup": 1, "gad": 2}
    broken = replace(config, data=Data(train=str(tmp_path / "none.jsonl")))
    assert duration.steps_of(broken, 0) is None


def test_fewer_rows_than_a_step_has_prompts_are_refused() -> None:
    with pytest.raises(UserError, match=r"batch.prompts=8 does not fit 5 rows; use 1 to 5, or g"):
        duration.steps_of(CONFIG, 5)


def test_hours_are_those_of_all_stages() -> None:
    phase = Phase("generator", 0.0, 0.0, 90.0, 0.0, 0.0, 0.0)
    taken = [Step("warmup", [phase], 0.0), Step("gad", [phase, phase], 0.0)]
    found = duration.of({"warmup": 40, "gad": 10}, taken)
    assert found is not None
    assert found.hours == (40 * 90 + 10 * 180) / 3600
    assert str(found) == "40 of warmup, 10 of gad: 1.5 hours"
    assert duration.of(None, taken) is None


@pytest.mark.parametrize(
    ("hours", "words"),
    [(0.001, "3.6 seconds"), (0.25, "15 minutes"), (38.24, "38.2 hours"), (1234.5, "1,234 hours")],
)
def test_times_are_said_in_the_unit_that_reads_well(hours: float, words: str) -> None:
    assert duration.in_words(hours) == words

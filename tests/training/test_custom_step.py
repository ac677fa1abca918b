"""A step that is a function of the user's: what it may return, and what is said otherwise.

docs/library.md has a whole run of one, and test_library.py resumes it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import custom_step
from gad_jax.types import TrainState
from tests.training.runs import rows, run, settings

FILE = """
def right(program, state, rows, frozen):
    return state._replace(step=state.step + 1), {"skips/consecutive": 0, "custom/loss": rows}

def still(program, state, rows, frozen):
    return state, {"skips/consecutive": 0}

def late(program, state, rows, frozen):
    return state

def bare(program, state, rows, frozen):
    return state._replace(step=state.step + 1), {"custom/loss": 1.0}

def wide(program, state, rows, frozen):
    state = state._replace(step=state.step + 1)
    return state, {"skips/consecutive": 0, "custom/losses": state.skips}

def said(program, state, rows, frozen):
    state = state._replace(step=state.step + 1)
    return state, {"skips/consecutive": 0, "custom/word": "well"}

def plain(program, state, rows, frozen):
    return state._replace(step=1), {"skips/consecutive": 0}

def grown(program, state, rows, frozen):
    return state._replace(reference=state.generator), {"skips/consecutive": 0}

def listed(program, state, rows, frozen):
    return list(state), {}

def broken(program, state, rows, frozen):
    return rows.nothing()

def full(program, state, rows, frozen):
    raise MemoryError
"""


def state() -> TrainState:
    values: dict[str, Any] = dict.fromkeys(TrainState._fields)
    zero = np.int32(0)
    values |= {"step": zero, "key": np.uint32(1), "skips": np.zeros(2, np.int32)}
    return TrainState(**values | {"generator": {"kernel": np.ones((2, 2), np.float32)}})


@pytest.fixture
def take(tmp_path: Path) -> Any:
    """Returns a function: a name in the file → what that step returns."""
    (tmp_path / "mine.py").write_text(FILE)

    def call(name: str) -> Any:
        step = custom_step.CustomStep(f"{tmp_path}/mine.py:{name}")
        return step.__call__.__wrapped__(step, None, state(), 0.5, None)  # type: ignore[attr-defined]

    return call


def test_the_next_state_and_metrics_are_returned(take: Any) -> None:
    after, metrics = take("right")
    assert (int(after.step), metrics["custom/loss"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("still", "and state.step is not one more than before; correct it"),
        ("late", "and it did not return two things; correct it"),
        ("bare", "and the metrics lack skips/consecutive"),
        ("wide", "and the metric custom/losses is no single number"),
        ("said", "and the metric custom/word is no single number"),
        ("plain", "and the state has other parts, shapes or dtypes than before"),
        ("grown", "and the state has other parts, shapes or dtypes than before"),
        ("listed", "and they are no state and no mapping"),
        ("broken", r"raised AttributeError: 'float' object has no .* in line 32; correct it, and"),
        ("other", "there is no function other"),
    ],
)
def test_what_it_must_not_return_is_named(take: Any, name: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"--custom.step=.*mine.py:{name}.* {said}"):
        take(name)


def test_memory_that_ran_out_is_no_fault_of_the_step(take: Any) -> None:
    with pytest.raises(MemoryError):
        take("full")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stage=custom"], "custom.step is empty, and the stage custom has no step but yours"),
        (
            ["--custom.step=mine.py:step"],
            "is the step of the stage custom, which stage=all does not have",
        ),
        (
            ["--stage=custom", "--custom.step=mine.py"],
            "must be FILE.py:FUNCTION or MODULE:FUNCTION",
        ),
        (
            ["--stage=custom", "--custom.step=m:f", "--custom.rollout=false"],
            "leaves the discriminator noth",
        ),
        (
            ["--stage=custom", "--custom.step=m:f", "--discriminator.replay_share=0.5"],
            "packs its own",
        ),
        (
            ["--stage=custom", "--custom.step=m:f", "--reward.extra=length=1"],
            "a custom step computes rewards itself",
        ),
        (
            ["--stage=custom", "--custom.step=m:f", "--grpo.drop_flat_groups"],
            "no stage of stage=custom pays",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(flags: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        options.read(Config, flags, program="", description="")


def test_another_file_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    step = custom_step.CustomStep(f"{tmp_path}/mine.py:right")
    assert custom_step.changed(step.identity, step) == []
    assert custom_step.changed("", step) == []
    assert custom_step.changed("0" * 64, None) == []
    assert "took as it was before (000000000000, now " in custom_step.changed("0" * 64, step)[0]


def test_a_step_that_packs_nothing_has_no_metrics_of_rows(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE.replace(', "custom/loss": rows', ""))
    flags = ("--stage=custom", "--custom.steps=2", "--custom.rollout=false", "--data.heldout=")
    flags = (*flags, "--custom.train_discriminator=false")
    run(settings(tmp_path / "run", *flags, f"--custom.step={tmp_path}/mine.py:right"))
    logged = rows(tmp_path / "run")
    assert [row["step"] for row in logged] == [1, 2]
    assert "packing/padding" not in logged[0]

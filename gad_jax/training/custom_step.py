"""A step that is a function of the user's: finding it, calling it, checking what it returns."""

from collections.abc import Mapping
from typing import Any

import jax

from gad_jax.base import shortage
from gad_jax.base.errors import UserError
from gad_jax.core.program import Program
from gad_jax.settings.config import Config
from gad_jax.training.rewards import functions
from gad_jax.training.step_rows import StepRows
from gad_jax.types import Frozen, TrainState

_NEEDED = "skips/consecutive"
"""`updates.commit` returns it, and the run looks at it after each step."""


class CustomStep:
    """The function behind `--custom.step`; `identity` hashes its file."""

    def __init__(self, source: str) -> None:
        self.given = f"--custom.step={source}"
        self._function, self._files, self.identity = functions.load(self.given, source)
        self._counts = False  # whether it is known to count its steps

    def __call__(
        self, program: Program, state: TrainState, rows: StepRows, frozen: Frozen
    ) -> tuple[TrainState, dict[str, Any]]:
        """Returns the next state and the metrics. Raises UserError for what the function raises,
        but for memory that ran out, and for what it must not return."""
        shapes = jax.tree.map(_shape, state)
        # Of the first step alone: reading a number waits for the devices.
        done = None if self._counts else int(state.step)  # before the step, which may donate it
        try:
            returned = self._function(program, state, rows, frozen)
        except Exception as error:
            if shortage.what_ran_out(error) is not None:
                raise
            raise UserError(
                f"{self.given} raised {functions.where_raised(error, self._files)}; "
                f"correct it, and {functions.RESUMES}"
            ) from error
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise UserError(self._wrong("it did not return two things"))
        after, metrics = returned
        if not isinstance(after, TrainState) or not isinstance(metrics, Mapping):
            raise UserError(self._wrong("they are no state and no mapping"))
        if shapes != jax.tree.map(_shape, after):
            raise UserError(self._wrong("the state has other parts, shapes or dtypes than before"))
        if done is not None and int(after.step) != done + 1:
            raise UserError(self._wrong("state.step is not one more than before"))
        self._counts = True
        if _NEEDED not in metrics:
            raise UserError(self._wrong(f"the metrics lack {_NEEDED}"))
        bad = [name for name, value in metrics.items() if not _is_number(value)]
        if bad:
            raise UserError(self._wrong(f"the metric {bad[0]} is no single number"))
        return after, dict(metrics)

    def _wrong(self, why: str) -> str:
        return (
            f"{self.given} must return the next state and its metrics, as "
            f"gad_jax.core.updates.commit does, and {why}; correct it"
        )


def _shape(leaf: Any) -> tuple[Any, Any]:
    return getattr(leaf, "shape", None), getattr(leaf, "dtype", type(leaf))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "ndim", None) == 0


def load(config: Config) -> CustomStep | None:
    """Returns the step of the stage custom; None for a run without that stage."""
    return CustomStep(config.custom.step) if "custom" in config.stages else None


def changed(stored: str, step: CustomStep | None) -> list[str]:
    """Returns a clause where steps were taken by another version of the file; `stored` is the
    identity in their checkpoint, '' where it has none."""
    if step is None or stored in ("", step.identity):
        return []
    return [f"that {step.given} took {functions.as_before(stored, step.identity)}"]

"""How long the configured run takes and what it costs, from the seconds of a step."""

import math
from pathlib import Path
from typing import NamedTuple

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.epochs import check_rows
from gad_jax.plan.estimate import Step
from gad_jax.settings.config import Config


class Duration(NamedTuple):
    """The steps of each stage, and the hours of all of them; evaluation and saving not counted."""

    steps: dict[str, int]
    hours: float

    def __str__(self) -> str:
        """The steps and their time as half a sentence."""
        each = ", ".join(f"{count:,} of {stage}" for stage, count in self.steps.items())
        return f"{each}: {in_words(self.hours)}"


def in_words(hours: float) -> str:
    """Returns a time: 38.2 hours, 12 minutes, 3 seconds."""
    if hours >= 1:
        return f"{hours:,.3g} hours" if hours < 100 else f"{hours:,.0f} hours"
    seconds = 3600 * hours
    return f"{seconds / 60:.2g} minutes" if seconds >= 60 else f"{seconds:.2g} seconds"


def steps_of(config: Config, rows: int) -> dict[str, int] | None:
    """Returns the steps of every stage; None where epochs of an unknown number of rows decide.

    `rows` is the number of training rows (0: those of a local file are counted). Raises UserError
    for fewer rows than prompts per step, as training does.
    """
    stages = {stage: getattr(config, stage) for stage in config.stages}
    if not all(options.steps for options in stages.values()):
        rows = rows or _count(config)
        if not rows:
            return None
    if rows:
        check_rows(config.batch.prompts, rows)
    per_epoch = rows // config.batch.prompts
    return {
        stage: options.steps or math.ceil(options.epochs * per_epoch)
        for stage, options in stages.items()
    }


def of(steps: dict[str, int] | None, taken: list[Step]) -> Duration | None:
    """Returns how long so many steps of each stage take."""
    if steps is None:
        return None
    seconds = sum(steps[step.stage] * step.seconds for step in taken)
    return Duration(steps, seconds / 3600)


def _count(config: Config) -> int:
    """Returns the training rows of a local file; 0 for rows of the hub, or that are not there."""
    name = config.data.train
    file, _, _ = name.rpartition(":")
    if name != "bundled" and not any(Path(each).exists() for each in (name, file) if each):
        return 0
    try:
        found = len(sources.read(name, skip_invalid=True))
    except UserError:
        return 0
    part = config.data.heldout_part
    held_out = round(found * part) if isinstance(part, float) else part or 0
    return max(found - held_out, 0)

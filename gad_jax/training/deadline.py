"""When a run must stop, and when it must save: by signals and by the clock."""

import datetime
import math
import os
import time

from gad_jax.base.errors import UserError
from gad_jax.base.exits import StopRequest
from gad_jax.distributed import processes


class Deadline:
    """Whether a run stops after this step or saves, on which all of its processes agree.

    `poll` looks at signals and clocks; `stopping` and `save_is_late` hold what it found. A run that
    is stopping never resumes by itself.
    """

    def __init__(self, stop_by: float, every_minutes: float) -> None:
        self.stop_by, self.every_minutes = stop_by, every_minutes
        self.saved_at = time.monotonic()
        self.stopping = self.save_is_late = False

    def poll(self, stop: StopRequest, next_step_seconds: float = 0.0) -> None:
        """Updates both flags; all processes call it at the same place."""
        late = 0 < 60 * self.every_minutes < time.monotonic() - self.saved_at
        asked = stop.requested or time.time() + next_step_seconds > self.stop_by
        asked, self.save_is_late = processes.any_of(asked, late)
        self.stopping = self.stopping or asked

    def saved(self) -> None:
        """Starts the clock of `every_minutes` anew."""
        self.saved_at = time.monotonic()


def stop_time(must_save_by: str, margin_minutes: float) -> float:
    """Returns when the run must begin to save for the last time, in seconds since 1970.

    That is `margin_minutes` before the given time (ISO 8601, local unless it says otherwise) or
    before the end of the Slurm job, whichever is earlier; infinity where neither is known. Raises
    UserError when that is past.
    """
    job = os.environ.get("SLURM_JOB_END_TIME", "")
    end = float(job) if job.isdigit() else math.inf
    if must_save_by:
        end = min(end, datetime.datetime.fromisoformat(must_save_by).timestamp())
    if time.time() > end - 60 * margin_minutes:
        when = datetime.datetime.fromtimestamp(end).isoformat(" ", "minutes")
        raise UserError(
            f"the run has to end at {when}, which leaves no step before the "
            f"--checkpoint.margin_minutes={margin_minutes:g} for saving; give it more time"
        )
    return end - 60 * margin_minutes

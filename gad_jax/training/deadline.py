"""When a run must save for the last time."""

import datetime
import math
import os
import time

from gad_jax.base.errors import (
    UserError,
)


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

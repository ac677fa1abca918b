"""Which settings of a run may change when it resumes.

Batches are functions of the seed and the step. So a stage may become longer or shorter, as long as
the steps that are done stay what they were, and what only later stages read may change at will.
"""

from collections.abc import Sequence

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import CAN_CHANGE, STAGES, Config
from gad_jax.training.stages import Span

_LENGTHS = tuple(f"{stage}.{name}" for stage in STAGES for name in ("steps", "epochs"))


def refused(old: Config, new: Config, stage: str) -> list[str]:
    """Returns the changes that a run cannot take up whose newest checkpoint is of `stage`, as
    `options.differences` shows them. Lengths of stages are for `check`."""
    done = old.stages[: old.stages.index(stage) + 1]
    can_change: list[str] = list(CAN_CHANGE)
    if new.stages[: len(done)] == done:
        can_change.append("stage:")
    later = [name for name in STAGES if name not in done]
    can_change += [f"{name}." for name in later]
    if "gad" in later:
        can_change.append("rollout.ahead")
        if "custom" not in done:  # its step may read them
            can_change += ["grpo.", "reward."]
    found = options.differences(old, new)
    return [line for line in found if not line.startswith((*can_change, *_LENGTHS))]


def check(old: Sequence[Span], new: Sequence[Span], stage: str, step: int) -> list[str]:
    """Returns what to say of the lengths that change, for a run whose newest checkpoint is of this
    stage and step. Raises UserError where steps that are done would be others."""
    starts = {span.stage: span.start for span in old}
    lengths = {span.stage: span.end - span.start for span in old}
    for span in new:
        length = span.end - span.start
        if span.start < starts[stage] and length != lengths[span.stage]:
            raise UserError(
                f"--{span.stage}.steps={length}: the {lengths[span.stage]} steps of {span.stage} "
                f"are over in this run, which is in {stage}, and cannot change; give --"
                f"{span.stage}.steps={lengths[span.stage]}, or choose another --run_dir"
            )
        if span.stage == stage and span.end < step:
            raise UserError(
                f"--{stage}.steps={length} is fewer than the {step - span.start} steps of {stage} "
                f"that this run has done; give that many or more, or begin another --run_dir with "
                "--student.path=RUN@STEP"
            )
    return [
        f"{span.stage}: {span.end - span.start} steps, "
        + (f"{lengths[span.stage]} before" if span.stage in lengths else "a new stage")
        + ("; its learning rates fall to 0 at the new end" if _falls(span, stage) else "")
        for span in new
        if lengths.get(span.stage) != span.end - span.start
    ]


def _falls(span: Span, stage: str) -> bool:
    """Returns whether a stage that has begun gets other learning rates from its length."""
    return span.stage == stage and span.program.schedule is not None

"""The settings of the health monitors."""

import math
from dataclasses import dataclass
from typing import Literal

from gad_jax.settings.fields import Checked, FieldError, option, section


@dataclass(frozen=True)
class Alarm(Checked):
    """When a monitor raises its alarm, and what that does."""

    action: Literal["off", "warn", "pause", "stop"] = option(
        "warn",
        "off: nothing; warn: a line; pause: the network at fault is paused; stop: the run saves "
        "and stops",
    )
    limit: float = option(1.0, "a smoothed value beyond this is bad")
    steps: int = option(
        20, "consecutive steps with a bad value that raise the alarm", "steps", minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise FieldError("limit", f"limit={self.limit} must be a number greater than 0")


@dataclass(frozen=True)
class Health(Checked):
    """The monitors of a run; 'the start' is the first steps of the stage."""

    length: Alarm = section(
        Alarm, "GAD: mean response length, as a multiple of the teacher's", limit=1.5, steps=10
    )
    runaway: Alarm = section(
        Alarm,
        "GAD: mean response length, as a multiple of the larger of the teacher's and the start's",
        action="stop",
        limit=3.0,
        steps=10,
    )
    cut: Alarm = section(
        Alarm,
        "GAD: share of the responses that ended, of the teacher's and at the start, that are cut",
        action="stop",
        limit=0.5,
        steps=50,
    )
    empty: Alarm = section(Alarm, "GAD: share of empty responses, above the start's", limit=0.2)
    repetition: Alarm = section(
        Alarm,
        "GAD: share of repeated 4-grams, above the larger of the teacher's and the start's",
        limit=0.3,
    )
    script: Alarm = section(
        Alarm,
        "GAD: distance of the writing systems used from the teacher's, above the start's",
        limit=0.3,
    )
    saturated: Alarm = section(Alarm, "D accuracy, too high", limit=0.98, steps=25)
    fooled: Alarm = section(Alarm, "D accuracy, too low", limit=0.4, steps=25)
    reward_spread: Alarm = section(
        Alarm, "GAD: standard deviation of a prompt's rewards, too low", limit=1e-3
    )
    dead_groups: Alarm = section(
        Alarm, "GAD: share of prompts whose samples all get the same reward", limit=0.5
    )
    entropy_low: Alarm = section(
        Alarm, "GAD: entropy per token, relative to the start, too low", limit=0.2
    )
    entropy_high: Alarm = section(
        Alarm, "GAD: entropy per token, relative to the start, too high", limit=3.0
    )
    kl: Alarm = section(Alarm, "GAD: KL to the stage's first weights, nats per token", limit=1.0)
    generator_gradient: Alarm = section(
        Alarm, "gradient norm of the generator, relative to the start", limit=20.0, steps=10
    )
    discriminator_gradient: Alarm = section(
        Alarm, "gradient norm of the discriminator, relative to the start", limit=20.0, steps=10
    )
    skips: Alarm = section(Alarm, "share of steps with a non-finite gradient", limit=0.3, steps=5)
    smoothing_steps: int = option(
        10, "values are averaged over about this many steps", "steps", minimum=1
    )
    start_steps: int = option(5, "steps of a stage that 'the start' means", "steps", minimum=1)
    longest_pause: int = option(
        50, "a paused network learns again after these steps at the latest", "steps", minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skips.action == "pause":
            raise FieldError(
                "skips.action", "skips.action=pause: no side is at fault; use warn or stop"
            )

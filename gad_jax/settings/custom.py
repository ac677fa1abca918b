"""The stage whose step is a function of the user's (docs/library.md). Imports no jax."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gad_jax.settings.fields import FieldError, option
from gad_jax.settings.sections import Stage

if TYPE_CHECKING:
    from gad_jax.settings.config import Config


@dataclass(frozen=True)
class Custom(Stage):
    """A stage whose steps are taken by a function of yours."""

    step: str = option("", "the function: FILE.py:FUNCTION or MODULE:FUNCTION")
    rollout: bool = option(True, "the student answers the prompts of each step")
    reference: bool = option(
        False, "the state holds the student's weights at the stage's start, as `reference`"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step and not re.fullmatch(r".+:[^\W\d]\w*", self.step):
            raise FieldError(
                "step", f"step={self.step!r} must be FILE.py:FUNCTION or MODULE:FUNCTION"
            )
        if not self.rollout and self.train_discriminator:
            raise FieldError(
                "rollout",
                "rollout=false leaves the discriminator nothing to tell from the teacher's text; "
                "give --custom.train_discriminator=false too",
                "train_discriminator",
            )


def check(config: "Config") -> None:
    """Raises FieldError for a custom stage without a step, or what it does not go with."""
    custom = config.custom
    if "custom" in config.stages and not custom.step:
        raise FieldError(
            "custom.step",
            "custom.step is empty, and the stage custom has no step but yours; name a function, as "
            "--custom.step=my_stage.py:step",
            "stage",
        )
    if custom.step and "custom" not in config.stages:
        raise FieldError(
            "custom.step",
            f"custom.step={custom.step} is the step of the stage custom, which "
            f"stage={config.stage} does not have; add it, as "
            "--stage=warmup,custom, or leave the step out",
            "stage",
        )
    if "custom" in config.stages and "gad" not in config.stages and config.reward.extra:
        raise FieldError(
            "reward.extra",
            "reward.extra pays in the stage gad, and a custom step computes rewards itself; leave "
            "it out, and call the function in your step",
            "stage",
        )
    if (
        "custom" in config.stages
        and custom.train_discriminator
        and config.discriminator.replay_share
    ):
        raise FieldError(
            "discriminator.replay_share",
            f"discriminator.replay_share={config.discriminator.replay_share:g} mixes older answers "
            "into the pairs of a step, and the stage custom packs its own; leave it out",
            "stage",
        )

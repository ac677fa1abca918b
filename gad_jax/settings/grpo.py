"""The generator's loss in the GAD stage, and what of a run it goes with. Imports no jax."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gad_jax.settings import fields
from gad_jax.settings.fields import Checked, FieldError, option

if TYPE_CHECKING:
    from gad_jax.settings.config import Config

IMPORTANCE_MAX = 2.0
"""Of samples drawn from rounded weights: the bound of "Your Efficient RL Framework Secretly Brings
You Off-Policy RL Training" (Yao et al., 2025)."""


@dataclass(frozen=True)
class Grpo(Checked):
    """The generator's loss in the GAD stage, as in the released scripts of the paper."""

    clip_low: float = option(
        0.2,
        "the probability ratio is clipped below at 1 - clip_low; it is 1 without --rollout.ahead",
        minimum=0,
        below=1,
    )
    clip_high: float = option(
        0.2, "the probability ratio is clipped above at 1 + clip_high", minimum=0
    )
    dual_clip: float = option(
        3.0, "bound on the loss of a negative advantage, in advantages", above=1
    )
    kl_coefficient: float = option(
        0.001,
        "weight of the k3 KL to the stage's first weights; 0 skips the reference pass",
        common=True,
        minimum=0,
    )
    kl_max: float = option(
        10.0, "bound on the k3 estimate of one token; inf: none", "nats", above=0, infinite=True
    )
    # exp(89) is more than float32 holds.
    log_ratio_max: float = option(
        20.0, "bound on log-probability differences", "nats", above=0, maximum=80
    )
    entropy_coefficient: float = option(0.0, "weight of an entropy bonus", minimum=0)
    advantage_scale: Literal["group", "none"] = option(
        "group",
        "what a reward minus its group's mean is divided by: group: the group's standard deviation",
    )
    advantage_epsilon: float = option(1e-6, "added to a group's standard deviation", above=0)
    drop_flat_groups: bool = option(
        False, "groups whose rewards are all the same leave the loss and its count of tokens"
    )
    importance_max: float = option(
        0.0,
        "bound on a token's weight, its probability in training / in sampling; inf: none, 0: no "
        f"weights, but {IMPORTANCE_MAX:g} where --rollout.weights or --student.matmul "
        "rounds; with --rollout.ahead, weights take the place of the clips",
        minimum=0,
        infinite=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.importance_max < 1:
            raise FieldError(
                "importance_max",
                f"importance_max={self.importance_max:g} would scale down tokens on which sampling "
                f"and training agree; use 1 or more, such as {IMPORTANCE_MAX:g}, or 0 for no "
                "weights",
            )


def check(config: "Config") -> None:
    """Raises FieldError for settings of the loss that no stage of the run would use."""
    stages = ",".join(config.stages)
    grpo, reward, rollout = config.grpo, config.reward, config.rollout
    if "gad" not in config.stages:
        if rollout.ahead:
            raise FieldError(
                "rollout.ahead",
                "rollout.ahead=true samples the responses of the gad stage early, and "
                f"stage={stages} has none; leave it out, or add gad",
                "stage",
            )
        for name, usual in (("drop_flat_groups", False), ("advantage_scale", "group")):
            if (value := getattr(grpo, name)) != usual:
                raise FieldError(
                    f"grpo.{name}",
                    f"grpo.{name}={fields.show(value)}, and no stage of stage={stages} pays "
                    "rewards; leave it out, or add gad",
                    "stage",
                )
    if grpo.advantage_scale != "none":
        return
    if reward.terms and reward.normalise == "group":
        raise FieldError(
            "grpo.advantage_scale",
            "grpo.advantage_scale=none divides by no group's spread, and "
            "reward.normalise=group does; give --reward.normalise=batch or none",
            "reward.normalise",
        )
    divides = reward.terms and reward.normalise != "none"
    if not divides and grpo.advantage_epsilon != Grpo().advantage_epsilon:
        raise FieldError(
            "grpo.advantage_epsilon",
            f"grpo.advantage_epsilon={grpo.advantage_epsilon:g} is added to a spread by which "
            "grpo.advantage_scale=none does not divide; leave one of them out",
            "grpo.advantage_scale",
        )

"""What follows where sampling and training round differently. Imports no jax.

That is so with rounded weights of the sampler (`rollout.weights`), and with rounded operands of the
updates' matmuls (`student.matmul`).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gad_jax.settings.fields import FieldError, Given
from gad_jax.settings.grpo import IMPORTANCE_MAX

if TYPE_CHECKING:
    from gad_jax.settings.config import Config

_NAMES = "rollout.weights", "student.matmul"


def completed(given: Mapping[str, Given]) -> dict[str, Given]:
    """Returns the given values, with importance weights where the sampler is not the policy."""
    found = dict(given)
    for name in _NAMES:
        chosen = given.get(name)
        if chosen is not None and chosen.value != "auto":
            found.setdefault("grpo.importance_max", Given(IMPORTANCE_MAX, chosen.where))
    return found


def check(config: "Config") -> None:
    """Raises FieldError for importance weights without a use, and for what rounding forbids."""
    weights, matmul = config.rollout.weights != "auto", config.student.matmul != "auto"
    if config.grpo.importance_max and not (weights or matmul) and "gad" not in config.stages:
        raise FieldError(
            "grpo.importance_max",
            f"grpo.importance_max={config.grpo.importance_max:g} weighs the tokens of the gad "
            f"stage, and stage={','.join(config.stages)} has none; leave it out, or add gad",
            "stage",
        )
    quantised = config.lora.rank and config.lora.is_quantised
    if weights and quantised:
        raise FieldError(
            "rollout.weights",
            f"rollout.weights={config.rollout.weights} has nothing to round: adapters decode on "
            f"their base, which lora.base_dtype={config.lora.base_dtype} stores; leave it out",
            "lora.base_dtype",
        )
    if matmul and quantised:
        raise FieldError(
            "student.matmul",
            f"student.matmul={config.student.matmul} would round the kernels of a base a second "
            f"time, which lora.base_dtype={config.lora.base_dtype} has rounded; leave it out, or "
            "give --lora.base_dtype=bfloat16",
            "lora.base_dtype",
        )
    rollout = config.rollout
    if not (rollout.top_k or rollout.top_p < 1):
        return
    left = f"top_k={rollout.top_k}" if rollout.top_k else f"top_p={rollout.top_p:g}"
    for name, value in zip(_NAMES, (rollout.weights, config.student.matmul), strict=True):
        if value != "auto":
            raise FieldError(
                name,
                f"{name}={value} moves logits, so training could not know which tokens "
                f"rollout.{left} left to draw; give --{name}=auto, or sample from all tokens",
                f"rollout.{left.partition('=')[0]}",
            )

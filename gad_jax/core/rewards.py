"""How a reward is mixed from the discriminator's score and other terms."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from gad_jax.core import objectives


@dataclasses.dataclass(frozen=True)
class Mix:
    """The weights of D's score and of the other terms, and what is done to each before the sum."""

    discriminator: float
    weights: tuple[float, ...]
    normalise: Literal["group", "batch", "none"]
    clip: float


def mixed(
    mix: Mix | None,
    scores: Float[Array, "B N"] | None,
    extra: Float[Array, "K B N"],
    eps: float = 1e-6,
) -> Float[Array, "B N"]:
    """Returns r = w_D z(D) + Σ w clip(z(e)), with `scores` for D (None if it is not used).

    A response whose term is non-finite has no reward: it is left out of its group, and its
    advantage is 0, as with a non-finite score. A term of weight 0 is only looked at.
    """
    assert mix is not None
    assert len(mix.weights) == extra.shape[0]
    total = jnp.zeros(extra.shape[1:], jnp.float32)
    if scores is not None and mix.discriminator > 0:
        total += mix.discriminator * normalised(scores, mix.normalise, eps)
    for weight, term in zip(mix.weights, extra, strict=True):
        if weight != 0:
            z = normalised(term, mix.normalise, eps)
            total += weight * jnp.clip(z, -mix.clip, mix.clip)
    return total


def normalised(
    values: Float[Array, "B N"], how: Literal["group", "batch", "none"], eps: float = 1e-6
) -> Float[Array, "B N"]:
    """Returns z of each value: the value minus the mean, over the standard deviation + eps, of its
    group or of the batch; `none` returns it as it is.

    Non-finite values are left out of both and become NaN. Equal values have z = 0.
    """
    values = values.astype(jnp.float32)
    if how == "none":
        return jnp.where(jnp.isfinite(values), values, jnp.nan)
    rows = values if how == "group" else values.reshape(1, values.size)
    z = objectives.group_advantages(rows, eps).reshape(values.shape)
    return jnp.where(jnp.isfinite(values), z, jnp.nan)

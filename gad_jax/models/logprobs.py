"""Log-probabilities and entropy from logits, in one pass over the vocabulary."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gad_jax.distributed import devices, sharding


@jax.custom_vjp
def logprobs_and_entropy(
    logits: Float[Array, "*n V"], tokens: Int[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Returns the log-probability of each token under softmax(logits), and the entropy of that
    distribution in nats, both in float32.

    A vocabulary that is split over devices stays where it is: there a token is picked by
    comparison, not by its index. Both results come from one exponential of the vocabulary, and so
    do both gradients: beside a small model's projection every further pass over it is felt.
    """
    return _logprobs_and_entropy(logits, tokens)[0]


def _logprobs_and_entropy(logits: Array, tokens: Array) -> tuple[tuple[Array, Array], Any]:
    wide = logits.astype(jnp.float32)
    top = jnp.max(wide, axis=-1, keepdims=True)
    shifted = wide - top
    weights = jnp.exp(shifted)
    terms = (weights, weights * shifted)
    if devices.platform() == "cpu" and _on_one_device(wide):
        total, weighted = _sums(*terms)
        here = sharding.reshard(wide, *[None] * wide.ndim)
        picked = jnp.take_along_axis(here, tokens[..., None], axis=-1)[..., 0]
    else:
        total, weighted = (jnp.sum(x, axis=-1) for x in terms)
        picked = jnp.sum(jnp.where(_is_token(wide, tokens), wide, 0.0), axis=-1)
    log_total = jnp.log(total)
    log_normalizer = top[..., 0] + log_total
    entropy = log_total - weighted / total
    return (picked - log_normalizer, entropy), (logits, tokens, log_normalizer, entropy)


def _sums(*terms: Float[Array, "*n V"]) -> Sequence[Float[Array, "*n"]]:
    """Returns the sums over the last axis in one pass over all terms, which are then never stored.

    Sums of columns side by side are what XLA makes vector instructions of on a CPU, exponentials
    included: a tenth of the time of separate sums of rows, and as exact.
    """
    *lead, width = terms[0].shape
    columns = math.gcd(width, 8)
    parts = [x.reshape(*lead, columns, width // columns) for x in terms]

    def add(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
        return [a + b for a, b in zip(left, right, strict=True)]

    sums = jax.lax.reduce(parts, [0.0] * len(parts), add, [len(lead)])
    return [jnp.sum(x, axis=-1) for x in sums]


def _on_one_device(x: Array) -> bool:
    """Returns whether no axis is laid out over several devices."""
    layout = jax.typeof(x).sharding
    names = jax.tree.leaves(tuple(layout.spec))  # an axis has no name, one, or several
    return all(layout.mesh.shape[name] == 1 for name in names)


def _logprobs_and_entropy_gradient(
    residuals: Any, cotangents: tuple[Array, Array]
) -> tuple[Array, None]:
    logits, tokens, log_normalizer, entropy = residuals
    for_token, for_entropy = (x[..., None] for x in cotangents)
    logprobs = logits.astype(jnp.float32) - log_normalizer[..., None]
    # dH/dz = -p (log p + H)
    slope = for_token + for_entropy * (logprobs + entropy[..., None])
    token = jnp.where(_is_token(logprobs, tokens), for_token, 0.0)
    return (token - jnp.exp(logprobs) * slope).astype(logits.dtype), None


logprobs_and_entropy.defvjp(_logprobs_and_entropy, _logprobs_and_entropy_gradient)


def _is_token(logits: Float[Array, "*n V"], tokens: Int[Array, "*n"]) -> Bool[Array, "*n V"]:
    layout = jax.typeof(logits).sharding
    vocabulary = jax.lax.broadcasted_iota(
        jnp.int32,
        logits.shape,
        logits.ndim - 1,
        out_sharding=None if layout.mesh.empty else layout,
    )
    return tokens[..., None] == vocabulary

"""Log-probabilities and entropy from logits, in as few passes over the vocabulary as possible.

`jax.nn.log_softmax` and its automatic gradient would do, but slower: a row of logits is 49 to 152
thousand numbers, and next to a small model's projection every pass over them shows in the step
time. What the loss does with the results is in `core/objectives.py`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gad_jax.distributed import devices, sharding


@jax.custom_vjp
def logprobs_and_entropy(
    logits: Float[Array, "*n V"], tokens: Int[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Returns each token's log-probability under softmax(logits), and the entropy in nats; float32.

    Both results share one exponential of the vocabulary, and so do both gradients. A vocabulary
    that is split over devices stays split.

    Example: logits [0 0 0 0], token 2 → log-probability -ln 4, entropy ln 4.
    """
    return _logprobs_and_entropy(logits, tokens)[0]


class Targets(NamedTuple):
    """The tokens to predict, and which tokens of the vocabulary could have been drawn there.

    Those are the token itself and all with a logit of at least the threshold; None: all.
    """

    tokens: Int[Array, "*n"]
    thresholds: Float[Array, "*n"] | None


LEFT_OUT = -1e30
"""Logit of a token that could not be drawn. Finite: 0 times it is 0, in the entropy too."""


def restricted(
    logits: Float[Array, "*n V"], targets: Targets, by: Float[Array, "*n V"]
) -> Float[Array, "*n V"]:
    """Returns the logits without the tokens that could not be drawn, by the logits of the sampler.

    Softmax then is the sampler's distribution, renormalised. The set itself has no gradient: a
    small change of the weights does not change it.
    """
    if targets.thresholds is None:
        return logits
    could = by >= targets.thresholds[..., None]
    return jnp.where(could | _is_token(by, targets.tokens), logits, LEFT_OUT)


def _logprobs_and_entropy(logits: Array, tokens: Array) -> tuple[tuple[Array, Array], Any]:
    wide = logits.astype(jnp.float32)
    top = jnp.max(wide, axis=-1, keepdims=True)
    shifted = wide - top
    weights = jnp.exp(shifted)
    terms = (weights, weights * shifted)
    platform, whole = devices.platform(), sharding.parts(wide) == 1
    if platform == "cpu" and whole:
        total, weighted = _sums(*terms)
    else:
        total, weighted = (jnp.sum(x, axis=-1) for x in terms)
    # A token is picked by its index where that is cheap: a gather from a split vocabulary would
    # gather the logits first. A comparison is one more sum over the vocabulary. A TPU computes it
    # with the others; on a GPU it would be one more pass.
    if platform != "tpu" and whole:
        here = sharding.reshard(wide, *[None] * wide.ndim)
        picked = jnp.take_along_axis(here, tokens[..., None], axis=-1)[..., 0]
    else:
        picked = jnp.sum(jnp.where(_is_token(wide, tokens), wide, 0.0), axis=-1)
    log_total = jnp.log(total)
    log_normalizer = top[..., 0] + log_total
    entropy = log_total - weighted / total
    return (picked - log_normalizer, entropy), (logits, tokens, log_normalizer, entropy)


def _sums(*terms: Float[Array, "*n V"]) -> Sequence[Float[Array, "*n"]]:
    """Returns the sums over the last axis, for a CPU: one pass over all terms, none of them stored.

    One variadic `lax.reduce` lets XLA compute the terms inside the reduction. It adds up 8 parts of
    a row number by number, so neighbouring numbers go to neighbouring sums, and XLA makes vector
    instructions of that, exponentials included. It takes a tenth of the time of separate `jnp.sum`s
    over whole rows, and is as exact.
    """
    *lead, width = terms[0].shape
    count = math.gcd(width, 8)
    parts = [x.reshape(*lead, count, width // count) for x in terms]

    def add(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
        return [a + b for a, b in zip(left, right, strict=True)]

    sums = jax.lax.reduce(parts, [0.0] * len(parts), add, [len(lead)])
    return [jnp.sum(x, axis=-1) for x in sums]


def _logprobs_and_entropy_gradient(
    residuals: Any, cotangents: tuple[Array, Array]
) -> tuple[Array, None]:
    # The exponential is computed again: keeping it would hold a second array of the logits' size.
    logits, tokens, log_normalizer, entropy = residuals
    for_token, for_entropy = (x[..., None] for x in cotangents)
    logprobs = logits.astype(jnp.float32) - log_normalizer[..., None]
    # d log p_t / dz = 1_t - p and dH / dz = -p (log p + H): p is a common factor of both
    slope = for_token + for_entropy * (logprobs + entropy[..., None])
    token = jnp.where(_is_token(logprobs, tokens), for_token, 0.0)
    return (token - jnp.exp(logprobs) * slope).astype(logits.dtype), None


logprobs_and_entropy.defvjp(_logprobs_and_entropy, _logprobs_and_entropy_gradient)


def _is_token(logits: Float[Array, "*n V"], tokens: Int[Array, "*n"]) -> Bool[Array, "*n V"]:
    """Returns which entry of the vocabulary is the token; split over devices like the logits."""
    layout = jax.typeof(logits).sharding
    vocabulary = jax.lax.broadcasted_iota(
        jnp.int32,
        logits.shape,
        logits.ndim - 1,
        out_sharding=None if layout.mesh.empty else layout,
    )
    return tokens[..., None] == vocabulary

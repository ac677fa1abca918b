"""From logits to one token: temperature, top-k, top-p, and an exact draw with one random number."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a token is drawn: temperature 0 takes the likeliest, top_k 0 and top_p 1 keep all."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampler(temperature=0.0)


def shape_logits(logits: Float[Array, "n V"], sampler: Sampler) -> Float[Array, "n V"]:
    """Returns the logits of the sampling distribution: divided by the temperature, and -inf for
    tokens outside of the top k, then outside of the smallest set that holds the mass top_p.

    Greedy sampling (temperature 0) leaves the logits as they are.
    """
    logits = logits.astype(jnp.float32)
    if sampler.temperature > 0:
        logits = logits / sampler.temperature
    if 0 < sampler.top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, sampler.top_k)[0][:, -1:]
        logits = jnp.where(logits >= smallest, logits, -jnp.inf)
    if sampler.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        before = before - jax.nn.softmax(ordered, axis=-1)
        kept = jnp.where(before < sampler.top_p, ordered, jnp.inf)
        logits = jnp.where(logits >= jnp.min(kept, axis=-1, keepdims=True), logits, -jnp.inf)
    return logits


def sample(
    logits: Float[Array, "n V"], uniform: Float[Array, " n"], sampler: Sampler
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Returns one token per row and its log-probability under the sampling distribution.

    `uniform` is one number in [0, 1) per row; the token is where the cumulative distribution
    passes it. Two levels, blocks and then tokens, keep the sums short and exact to float32 where
    one cumulative sum over 152 thousand probabilities would not be, and need one random number
    where the Gumbel trick needs one per token of the vocabulary.
    """
    logits = shape_logits(logits, sampler)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    if sampler.temperature == 0:
        token = jnp.argmax(logits, axis=-1)
    else:
        token = _inverse_cdf(weights, uniform)
    picked = jnp.take_along_axis(logits, token[:, None], axis=-1)
    logprob = (picked - top)[:, 0] - jnp.log(jnp.sum(weights, axis=-1))
    return token.astype(jnp.int32), logprob


def _inverse_cdf(weights: Float[Array, "n V"], uniform: Float[Array, " n"]) -> Int[Array, " n"]:
    rows, vocabulary = weights.shape
    count = -(-vocabulary // _BLOCK)
    padded = jnp.pad(weights, ((0, 0), (0, count * _BLOCK - vocabulary)))
    blocks = padded.reshape(rows, count, _BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    block, rest = _locate(sums, uniform * jnp.sum(sums, axis=-1))
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    token, _ = _locate(inside, rest)
    return block * _BLOCK + token


def _locate(
    weights: Float[Array, "n k"], target: Float[Array, " n"]
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Returns where the running sum passes the target, and what is left of the target there.

    Never an entry of weight 0: where rounding lets the sum end at the target, the last positive.
    """
    total = jnp.cumsum(weights, axis=-1)
    passed = (total > target[:, None]) & (weights > 0)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    index = jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)
    before = jnp.take_along_axis(total - weights, index[:, None], axis=-1)[:, 0]
    return index, jnp.maximum(target - before, 0.0)

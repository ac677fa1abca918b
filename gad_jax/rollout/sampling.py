"""From logits to one token: temperature, top-k, top-p, min-p, and an exact draw with one number.

The random numbers themselves are made by the callers (`engine.py`, `live.py`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gad_jax.settings.decoding import LEAST_TEMPERATURE

_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a token is drawn.

    Temperature 0 takes the likeliest token. top_k 0, top_p 1 and min_p 0 keep all tokens. `banned`
    tokens are never drawn.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    banned: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def truncates(self) -> bool:
        """Whether tokens other than the banned ones may be left out."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


GREEDY = Sampler(temperature=0.0)


def shape_logits(logits: Float[Array, "n V"], sampler: Sampler) -> Float[Array, "n V"]:
    """Returns the float32 logits of the sampling distribution; -inf for tokens that are left out.

    They are divided by the temperature. Left out are, in this order: banned tokens, those outside
    the top k, those outside the smallest set with the mass top_p, and those less likely than min_p
    times the likeliest. Tokens with equal logits stay or go together. Greedy sampling (temperature
    0) leaves the logits unchanged, except for banned tokens.
    """
    logits = logits.astype(jnp.float32)
    if sampler.banned:
        logits = logits.at[:, jnp.asarray(sampler.banned)].set(-jnp.inf)
    if sampler.greedy:
        return logits
    logits = logits / sampler.temperature
    if 0 < sampler.top_k < logits.shape[-1]:
        logits = _keep_top(logits, jnp.ones_like(logits), float(sampler.top_k))
    if sampler.top_p < 1:
        logits = _keep_top(logits, jax.nn.softmax(logits, axis=-1), sampler.top_p)
    if sampler.min_p > 0:
        least = jnp.max(logits, axis=-1, keepdims=True) + math.log(sampler.min_p)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def _keep_top(
    logits: Float[Array, "n V"], weights: Float[Array, "n V"], limit: float | Float[Array, "n 1"]
) -> Float[Array, "n V"]:
    """Returns -inf for each logit below others whose weights sum to `limit` or more.

    The threshold is found by bisection over the bits of a float32: 32 sums over the vocabulary,
    which is exact and cheaper than sorting it.
    """
    # The bits of floats, read as integers, are ordered like the floats (negatives: flipped).
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    ordered = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    def narrow(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # the threshold is in (low, high]
        middle = (low & high) + ((low ^ high) >> 1)
        above = jnp.sum(jnp.where(ordered > middle, weights, 0.0), axis=-1, keepdims=True)
        enough = above >= limit
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # The likeliest stays even where the limit is 0, as the smallest top_p are in float32.
    most = jnp.max(ordered, axis=-1, keepdims=True)
    start = (jnp.full_like(most, jnp.iinfo(jnp.int32).min), most)
    _, threshold = jax.lax.fori_loop(0, 32, narrow, start)
    return jnp.where(ordered >= threshold, logits, -jnp.inf)


def sample(
    logits: Float[Array, "n V"], uniform: Float[Array, " n"], sampler: Sampler
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Returns one token per row and its log-probability under the sampling distribution.

    `uniform` is one number in [0, 1) per row: the token is where the cumulative distribution passes
    it. The sums have two levels, blocks and then tokens. One cumulative sum over 152 thousand
    probabilities would not be exact in float32. The Gumbel trick would need a random number for
    every token of the vocabulary.
    """
    return sample_shaped(shape_logits(logits, sampler), uniform, sampler)


def sample_shaped(
    shaped: Float[Array, "n V"], uniform: Float[Array, " n"], sampler: Sampler
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Returns what `sample` does, of the logits that `shape_logits` gave."""
    top, weights = _weights(shaped)
    token = _likeliest(shaped) if sampler.greedy else _inverse_cdf(weights, uniform)
    return _with_logprob(token, shaped, top, weights)


def thresholds(
    logits: Float[Array, "n V"], shaped: Float[Array, "n V"], sampler: Sampler
) -> Float[Array, " n"]:
    """Returns for each row what divides the tokens that `shape_logits` kept from those left out.

    A token was kept where its logit / temperature is at least the threshold. It lies halfway
    between the two sets: logits that are computed again, with other rounding, give the same sets.
    """
    every = logits.astype(jnp.float32) / sampler.temperature
    kept = shaped > -jnp.inf
    least = jnp.min(jnp.where(kept, every, jnp.inf), axis=-1)
    most = jnp.max(jnp.where(kept, -jnp.inf, every), axis=-1)
    middle = most + (least - most) / 2
    return jnp.where(middle > most, middle, jnp.where(most > -jnp.inf, least, -jnp.inf))


class RowSamplers(NamedTuple):
    """A sampler per row, as arrays: the fields of `Sampler` without banned tokens."""

    temperature: Float[Array, " n"]
    top_k: Int[Array, " n"]
    top_p: Float[Array, " n"]
    min_p: Float[Array, " n"]

    @classmethod
    def of(cls, *samplers: Sampler) -> "RowSamplers":
        """Returns these samplers as rows, on the host."""

        def column(values: Iterable[float], kind: type = np.float32) -> Any:
            return np.asarray(list(values), kind)

        most = np.iinfo(np.int32).max  # more than any vocabulary has
        return cls(
            column(0 if sampler.greedy else sampler.temperature for sampler in samplers),
            column((min(sampler.top_k, most) for sampler in samplers), np.int32),
            column(sampler.top_p for sampler in samplers),
            column(sampler.min_p for sampler in samplers),
        )


def sample_rows(
    logits: Float[Array, "n V"], uniform: Float[Array, " n"], samplers: RowSamplers
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Returns what `sample` does, with another sampler for each row.

    A filter that no row uses costs nothing.
    """
    temperature, top_k, top_p, min_p = (x[:, None] for x in samplers)
    vocabulary = logits.shape[-1]
    random = temperature > 0
    logits = logits.astype(jnp.float32) / jnp.where(random, temperature, 1.0)

    def filtered(logits: Array, has: Array, limit: Array, weigh: Callable[[Array], Array]) -> Array:
        # a limit above the sum of all weights leaves the row unchanged
        def keep(logits: Array) -> Array:
            return _keep_top(logits, weigh(logits), jnp.where(has, limit, vocabulary + 1.0))

        return jax.lax.cond(jnp.any(has), keep, lambda logits: logits, logits)

    has_top_k = random & (top_k > 0) & (top_k < vocabulary)
    logits = filtered(logits, has_top_k, top_k.astype(jnp.float32), jnp.ones_like)
    logits = filtered(logits, random & (top_p < 1), top_p, partial(jax.nn.softmax, axis=-1))
    least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(jnp.where(random, min_p, 0.0))
    logits = jnp.where(logits >= least, logits, -jnp.inf)
    top, weights = _weights(logits)
    token = jnp.where(random[:, 0], _inverse_cdf(weights, uniform), _likeliest(logits))
    return _with_logprob(token, logits, top, weights)


def _weights(logits: Float[Array, "n V"]) -> tuple[Float[Array, "n 1"], Float[Array, "n V"]]:
    """Returns the largest logit of each row, and all probabilities divided by the largest."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    return top, jnp.exp(logits - top)


def _with_logprob(
    token: Int[Array, " n"],
    logits: Float[Array, "n V"],
    top: Float[Array, "n 1"],
    weights: Float[Array, "n V"],
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    picked = jnp.take_along_axis(logits, token[:, None], axis=-1)
    logprob = (picked - top)[:, 0] - jnp.log(jnp.sum(weights, axis=-1))
    return token.astype(jnp.int32), logprob


def _blocks(x: Float[Array, "n V"], fill: float) -> Float[Array, "n B K"]:
    """Returns the vocabulary in blocks, the last one padded with `fill`."""
    rows, vocabulary = x.shape
    count = -(-vocabulary // _BLOCK)
    padded = jnp.pad(x, ((0, 0), (0, count * _BLOCK - vocabulary)), constant_values=fill)
    return padded.reshape(rows, count, _BLOCK)


def _likeliest(logits: Float[Array, "n V"]) -> Int[Array, " n"]:
    """Returns the first of the largest: its block, then its place in the block.

    One `argmax` over the whole vocabulary would be the slowest part of sampling on a CPU.
    """
    blocks = _blocks(logits, -jnp.inf)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + jnp.argmax(inside, axis=-1)


def _inverse_cdf(weights: Float[Array, "n V"], uniform: Float[Array, " n"]) -> Int[Array, " n"]:
    blocks = _blocks(weights, 0.0)
    sums = jnp.sum(blocks, axis=-1)
    block, rest = _locate(sums, uniform * jnp.sum(sums, axis=-1))
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    token, _ = _locate(inside, rest)
    return block * _BLOCK + token


def _locate(
    weights: Float[Array, "n k"], target: Float[Array, " n"]
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Returns where the running sum passes the target, and what is left of the target there.

    An entry of weight 0 is never returned. Where rounding ends the sum before the target, it is
    the last entry with a positive weight.
    """
    total = jnp.cumsum(weights, axis=-1)
    passed = (total > target[:, None]) & (weights > 0)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    index = jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)
    before = jnp.take_along_axis(total - weights, index[:, None], axis=-1)[:, 0]
    return index, jnp.maximum(target - before, 0.0)

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

# The sizes of a block; one that divides the vocabulary, such as 128 of Qwen's, needs no slices.
_BLOCKS = (256, 128)
# Less than all logits but -inf: the exponentials of a block without others are 0, and not nan.
_LEAST = np.finfo(np.float32).min


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a token is drawn.

    Temperature 0 takes the likeliest token. top_k 0, top_p 1 and min_p 0 keep all tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def truncates(self) -> bool:
        """Whether tokens may be left out."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


GREEDY = Sampler(temperature=0.0)


def shape_logits(logits: Float[Array, "n V"], sampler: Sampler) -> Float[Array, "n V"]:
    """Returns the float32 logits of the sampling distribution; -inf for tokens that are left out.

    They are divided by the temperature. Left out are, in this order: tokens outside the top k,
    those outside the smallest set with the mass top_p, and those less likely than min_p times the
    likeliest. Tokens with equal logits stay or go together. Greedy sampling (temperature 0) leaves
    the logits unchanged.
    """
    logits = logits.astype(jnp.float32)
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
    blocks = _Blocks.of(shaped)
    return _greedy(shaped, blocks) if sampler.greedy else _inverse_cdf(shaped, blocks, uniform)


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
    """A sampler per row, as arrays: the fields of `Sampler`."""

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
    blocks = _Blocks.of(logits)
    drawn, likeliest = _inverse_cdf(logits, blocks, uniform), _greedy(logits, blocks)
    token, logprob = jax.tree.map(partial(jnp.where, random[:, 0]), drawn, likeliest)
    return token, logprob


class _Blocks(NamedTuple):
    """The vocabulary in blocks of consecutive tokens: the largest logit of each, and its weight.

    A weight is the sum of exp(logit - top), where `top` is the row's largest logit. The logits are
    read, and no array of their size is written: exponentials are of the difference to the block's
    largest, and the sum is scaled. One cumulative sum is then over the blocks, another in a block.
    """

    size: int
    largest: Float[Array, "n B"]
    weights: Float[Array, "n B"]
    top: Float[Array, "n 1"]

    @classmethod
    def of(cls, logits: Float[Array, "n V"]) -> "_Blocks":
        """Returns the blocks of each row. Where their size does not divide V, the last is short."""
        rows, vocabulary = logits.shape
        size = next((size for size in _BLOCKS if vocabulary % size == 0), _BLOCKS[0])
        whole = vocabulary // size
        parts = [logits[:, : whole * size].reshape(rows, whole, size)]
        parts.append(logits[:, None, whole * size :])
        parts = [part for part in parts if part.size]
        largest = [jnp.max(part, axis=-1) for part in parts]
        sums = [
            jnp.sum(jnp.exp(part - jnp.maximum(most, _LEAST)[..., None]), axis=-1)
            for part, most in zip(parts, largest, strict=True)
        ]
        # Without the barrier XLA takes the largest of all logits in one more pass over them.
        most = jax.lax.optimization_barrier(jnp.concatenate(largest, axis=-1))
        top = jnp.max(most, axis=-1, keepdims=True)
        weights = jnp.concatenate(sums, axis=-1) * jnp.exp(most - top)
        return cls(size, most, weights, top)

    def inside(self, logits: Float[Array, "n V"], block: Int[Array, " n"]) -> Float[Array, "n K"]:
        """Returns the logits of one block of each row; -inf beyond the vocabulary."""
        vocabulary = logits.shape[-1]
        index = block[:, None] * self.size + jnp.arange(self.size)
        found = jnp.take_along_axis(logits, jnp.minimum(index, vocabulary - 1), axis=-1)
        # Read once, and not again for the token that is picked.
        return jax.lax.optimization_barrier(jnp.where(index < vocabulary, found, -jnp.inf))

    def token(
        self, inside: Float[Array, "n K"], block: Int[Array, " n"], place: Int[Array, " n"]
    ) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
        """Returns the tokens at these places of the blocks, and their log-probabilities."""
        picked = jnp.take_along_axis(inside, place[:, None], axis=-1)
        logprob = (picked - self.top)[:, 0] - jnp.log(jnp.sum(self.weights, axis=-1))
        return (block * self.size + place).astype(jnp.int32), logprob


def _greedy(
    logits: Float[Array, "n V"], blocks: _Blocks
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Returns the first of the likeliest tokens: the first block with it, then its place there.

    One `argmax` over the whole vocabulary would be the slowest part of sampling on a CPU.
    """
    block = jnp.argmax(blocks.largest, axis=-1)
    inside = blocks.inside(logits, block)
    return blocks.token(inside, block, jnp.argmax(inside, axis=-1))


def _inverse_cdf(
    logits: Float[Array, "n V"], blocks: _Blocks, uniform: Float[Array, " n"]
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    block, rest = _locate(blocks.weights, uniform * jnp.sum(blocks.weights, axis=-1))
    inside = blocks.inside(logits, block)
    place, _ = _locate(jnp.exp(inside - blocks.top), rest)
    return blocks.token(inside, block, place)


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

"""Rotary positions (RoPE, arXiv:2104.09864) and the ways to stretch them to longer sequences."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gad_jax.models.config import Linear, Llama3, LongRope, Rope, Yarn

Rotation = tuple[Float[Array, "n C2"], Float[Array, "n C2"]]
"""Cosines and sines of the rotary angles of n tokens; C2 is half of the width that is rotated."""


def rotation(rope: Rope, head_width: int, positions: Int[Array, " n"]) -> Rotation:
    """Returns cosines and sines of the rotary angles of these positions, float32.

    Positions beyond `DecoderConfig.max_positions` are not refused here: callers bound their
    lengths.
    """
    # In float32: bfloat16 has 8 bits, and positions above 256 would fall together.
    angles = positions[:, None].astype(jnp.float32) * _frequencies(rope, head_width)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if isinstance(rope.scaling, Yarn | LongRope):
        return cos * rope.scaling.attention_factor, sin * rope.scaling.attention_factor
    return cos, sin


def rotate(x: Float[Array, "n heads C"], angles: Rotation | None) -> Float[Array, "n heads C"]:
    """Returns x rotated by the angles of its positions; computed in float32, in the dtype of x.

    Number i of a head is paired with number i + C/2, as in Hugging Face's Llama, and not with its
    neighbour, as in the RoPE paper. Numbers beyond the rotated width stay as they are, and without
    angles all do.
    """
    if angles is None:
        return x
    cos, sin = (angle[:, None, :] for angle in angles)
    width = 2 * cos.shape[-1]
    first, second = jnp.split(x[..., :width].astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    rest = (x[..., width:],) if width < x.shape[-1] else ()
    return jnp.concatenate([z.astype(x.dtype) for z in (*rotated, *rest)], axis=-1)


def _frequencies(rope: Rope, head_width: int) -> Float[Array, " C2"]:
    """Returns radians per position."""
    width = rope.rotary_width or head_width
    exponents = jnp.arange(0, width, 2, dtype=jnp.float32) / width
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case Linear(factor):
            return frequencies / factor
        case Llama3() as s:
            # Periods that training at the original length has seen: a frequency with many is kept,
            # one with less than a few is divided, so that longer texts reach no angle new to it.
            periods = s.original_max_positions * frequencies / (2 * jnp.pi)
            kept = (periods - s.low_frequency_factor) / (
                s.high_frequency_factor - s.low_frequency_factor
            )
            kept = jnp.clip(kept, 0.0, 1.0)
            return kept * frequencies + (1 - kept) * frequencies / s.factor
        case Yarn() as s:
            low, high = (_index(rope, width, s, periods) for periods in (s.beta_fast, s.beta_slow))
            if s.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, width - 1)
            high = high + 0.001 if high == low else high  # as in transformers: no division by 0
            kept = 1 - jnp.clip((jnp.arange(width // 2) - low) / (high - low), 0.0, 1.0)
            return kept * frequencies + (1 - kept) * frequencies / s.factor
        case LongRope(short_factors=factors):
            return frequencies / jnp.asarray(factors, jnp.float32)
        case None:
            return frequencies


def _index(rope: Rope, width: int, yarn: Yarn, periods: float) -> float:
    """Returns which frequency has so many periods in the original length; not a whole number."""
    wavelengths = yarn.original_max_positions / (periods * 2 * math.pi)
    return width * math.log(wavelengths) / (2 * math.log(rope.theta))

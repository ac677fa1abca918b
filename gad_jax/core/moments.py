"""How AdamW's two moments are stored: in float32, in bfloat16, or in floats of 8 bits.

What does not fit is rounded stochastically: the second moment moves by a thousandth of itself per
step, which rounding to the nearest would lose each time. What decides is a hash of the gradient's
bits and the step, not a random generator: it costs no memory traffic, a resumed run repeats it, and
every shard of an array computes its own part.

A float of 8 bits has 8 steps per octave, and counts its octaves down from a scale. A scale is
shared by the numbers along the longer of a matrix's two axes:

    mu  int8   sign, 15 octaves below the scale
    nu  uint8  31 octaves below the scale: of its root, as many as mu has

Below the last octave the steps keep their size, as those of subnormal numbers do. A scale is
the same average as the moment's, of the largest gradient, so no moment is above it, and it is known
before the moments are.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Integer

STEPS = 8
OCTAVES = {"mu": 15, "nu": 31}
_LAST = 7  # octaves that float32 has to spare below those of a code


class Adam8(NamedTuple):
    """The state of `optax.scale_by_adam` with moments in 8 bits, and their scales, which have
    length 1 along the axis that shares them."""

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    nu: Any
    mu_scale: Any
    nu_scale: Any


Kind = Literal["float32", "bfloat16", "float8"]


def stored(kind: Kind, state: Any) -> Any:
    """Returns the state of `optax.scale_by_adam` before the first step, all zeros, as it is
    stored."""
    if kind != "float8":
        return _cast(state, kind)
    codes = {
        "mu": jax.tree.map(lambda x: x.astype(jnp.int8), state.mu),
        "nu": jax.tree.map(lambda x: x.astype(jnp.uint8), state.nu),
    }
    return Adam8(state.count, **codes, **_scales(lambda _, x: _largest(x), state.mu))


def wide(state: Any) -> optax.ScaleByAdamState:
    """Returns stored moments in float32."""
    if not isinstance(state, Adam8):
        return _cast(state, jnp.float32)
    return optax.ScaleByAdamState(
        state.count,
        jax.tree.map(functools.partial(_read, "mu"), state.mu, state.mu_scale),
        jax.tree.map(functools.partial(_read, "nu"), state.nu, state.nu_scale),
    )


def narrow(
    kind: Kind,
    new: Any,
    before: Any,
    gradients: Any,
    beta1: float,
    beta2: float,
) -> Any:
    """Returns new float32 moments as they are stored; `before` are the stored ones before."""
    noise = functools.partial(_noise, new.count)
    if kind == "float8":
        return _in_8_bits(new, before, gradients, noise, beta1, beta2)
    if kind == "float32":
        return new

    def one(salt: int, moment: Array, gradient: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(moment, jnp.uint32)
        kept = (bits + (noise(salt, gradient) & jnp.uint32(0xFFFF))) & jnp.uint32(0xFFFF0000)
        return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)

    return new._replace(
        mu=jax.tree.map(functools.partial(one, 0), new.mu, gradients),
        nu=jax.tree.map(functools.partial(one, 1), new.nu, gradients),
    )


def _cast(state: Any, dtype: Any) -> Any:
    """Returns the moments in this dtype; the count stays."""
    return state._replace(mu=optax.tree.cast(state.mu, dtype), nu=optax.tree.cast(state.nu, dtype))


def _noise(count: Array, salt: int, gradient: Array) -> Array:
    """Returns 32 bits per number of the gradient."""
    steps = count.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    seed = jax.lax.bitcast_convert_type(gradient.astype(jnp.float32), jnp.uint32)
    return _hash(seed ^ (steps + jnp.uint32(salt)))


def _hash(x: Array) -> Array:
    """Mixes the bits of each uint32: multiplications and shifts that change half of them."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _in_8_bits(
    new: Any,
    before: Adam8,
    gradients: Any,
    noise: Callable[[int, Array], Array],
    beta1: float,
    beta2: float,
) -> Adam8:
    largest = jax.tree.map(_largest, gradients)

    def average(name: str, largest: Array, scale: Array) -> Array:
        beta = beta1 if name == "mu" else beta2
        return beta * scale + (1 - beta) * (largest if name == "mu" else jnp.square(largest))

    scales = _scales(average, largest, before)

    def one(name: str, moment: Array, gradient: Array, scale: Array) -> Array:
        share = (noise(int(name == "nu"), gradient) >> 8).astype(jnp.float32) * 2.0**-24
        code = _code(name, jnp.abs(moment), scale, share)
        if name == "mu":
            return jnp.where(moment < 0, -code, code).astype(jnp.int8)
        # A second moment of 0 under a first moment that is none would be a long step.
        return jnp.maximum(code, moment > 0).astype(jnp.uint8)

    codes = {
        name: jax.tree.map(
            functools.partial(one, name), getattr(new, name), gradients, scales[f"{name}_scale"]
        )
        for name in OCTAVES
    }
    return Adam8(new.count, **codes, **scales)


def _scales(
    function: Callable[..., Array], tree: Any, before: Adam8 | None = None
) -> dict[str, Any]:
    """Returns both trees of scales: `function(name, leaf of the tree, scale before)`."""
    found = {}
    for name in OCTAVES:
        others = [] if before is None else [getattr(before, f"{name}_scale")]
        found[f"{name}_scale"] = jax.tree.map(functools.partial(function, name), tree, *others)
    return found


def _largest(x: Float[Array, "*n"]) -> Float[Array, "*shared"]:
    """Returns the largest magnitude along the axis that shares a scale.

    One reduction to both ends: a CPU would store the magnitudes for a `jnp.max`.
    """
    last = x.ndim - 1
    longer = last - 1 if last and x.shape[-2] >= x.shape[-1] else last

    def ends(left: Any, right: Any) -> tuple[Array, Array]:
        return jnp.maximum(left[0], right[0]), jnp.minimum(left[1], right[1])

    none = jnp.asarray(0, x.dtype), jnp.asarray(0, x.dtype)
    most, least = jax.lax.reduce((x, x), none, ends, (longer,))
    return jnp.expand_dims(jnp.maximum(most, -least), longer)


def _code(
    name: str, x: Float[Array, "*n"], scale: Float[Array, "*shared"], share: Float[Array, "*n"]
) -> Int[Array, "*n"]:
    """Returns the codes of numbers of 0 or more, each rounded up by `share` of a step and cut."""
    lowest, above = _octaves(name, scale)
    octave = jnp.clip(_exponent(x), lowest, above - 1)
    steps = jnp.floor(x * _power(3 - octave) + share).astype(jnp.int32)
    # An octave's codes are 8 to 15 steps; 16 are the first code of the next one.
    return jnp.clip(STEPS * (octave - lowest) + steps, 0, STEPS * (OCTAVES[name] + 1) - 1)


def _read(
    name: str, code: Integer[Array, "*n"], scale: Float[Array, "*shared"]
) -> Float[Array, "*n"]:
    lowest, _ = _octaves(name, scale)
    size = jnp.abs(code.astype(jnp.int32))
    octave = jnp.maximum(size // STEPS - 1, 0)
    found = (size - STEPS * octave).astype(jnp.float32) * _power(lowest + octave - 3)
    return jnp.where(code < 0, -found, found)


def _octaves(name: str, scale: Float[Array, "*shared"]) -> tuple[Array, Array]:
    """Returns the exponents of the lowest octave, and of the one above the scale's."""
    # A scale above the last step of its octave has another above it, to be rounded up to.
    top = _exponent(scale * (2 * STEPS / (2 * STEPS - 1)))
    above = jnp.clip(top + 1, OCTAVES[name] + _LAST - 127, 127)
    return above - OCTAVES[name], above


def _exponent(x: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """Returns floor(log2 x) of numbers of 0 or more; -127 of 0."""
    return (jax.lax.bitcast_convert_type(x, jnp.uint32) >> 23).astype(jnp.int32) - 127


def _power(exponent: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns 2 to the power of whole numbers of -126 to 127, exactly."""
    return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)

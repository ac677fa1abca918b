"""AdamW after a global-norm clip, written so that a compiled step updates the moments in place.

The moments may be stored in bfloat16. They are then rounded stochastically: the second moment moves
by a thousandth of itself per step, which rounding to the nearest of 256 steps would lose each time.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from gad_jax.settings.sections import Optimizer


@functools.cache  # jit compares by identity: equal settings must not be traced and compiled again
def adamw(options: Optimizer, rate: float) -> optax.GradientTransformationExtraArgs:
    """Returns the clip and AdamW as one optax transformation, at a constant learning rate.

    Its `update` takes `finite`: where that is False, the moments do not change. With
    `applied=False` the result is only to be looked at, and needs no memory.
    """
    return optax.chain(
        _clip(options.max_gradient_norm),
        optax.chain(
            _scale_by_adam(options),
            optax.add_decayed_weights(options.weight_decay),
            optax.scale_by_learning_rate(rate),
        ),
    )


def _clip(max_norm: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` as a multiplication by one factor.

    optax divides each leaf. A division is expensive, so XLA does not repeat it in the fusions that
    read it, but stores its result: a second copy of the gradients.
    """

    def clip(gradients: Any, params: Any) -> Any:
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(gradients))
        return jax.tree.map(lambda g: g * factor, gradients)

    return optax.stateless(clip)


def _scale_by_adam(options: Optimizer) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam` whose updates are computed from the new stored moments only.

    If XLA read the old moments for the updates too, it would have to copy them before it overwrites
    them. The barrier prevents that.
    """
    plain = optax.scale_by_adam(options.beta1, options.beta2, options.epsilon)
    stored = jnp.dtype(options.moments)

    def init(params: Any) -> optax.OptState:
        return _cast(plain.init(params), stored)

    def update(
        updates: Any,
        state: optax.OptState,
        params: Any = None,
        *,
        finite: Bool[Array, ""] | bool = True,
        applied: bool = True,
        **_: Any,
    ) -> tuple[Any, optax.OptState]:
        new = plain.update(updates, _cast(state, jnp.float32))[1]
        if stored == jnp.bfloat16:
            new = _rounded(new, updates)
        if applied:
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
            new = jax.lax.optimization_barrier(new)
        wide = _cast(new, jnp.float32)
        first = optax.tree.bias_correction(wide.mu, options.beta1, wide.count)
        second = optax.tree.bias_correction(wide.nu, options.beta2, wide.count)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + options.epsilon), first, second)
        return scaled, new

    return optax.GradientTransformationExtraArgs(init, update)


def _cast(state: Any, dtype: Any) -> Any:
    """Returns the moments in this dtype; the count stays."""
    return state._replace(mu=optax.tree.cast(state.mu, dtype), nu=optax.tree.cast(state.nu, dtype))


def _rounded(state: Any, gradients: Any) -> Any:
    """Returns float32 moments rounded to bfloat16, up with the probability of the part cut off.

    What decides is a hash of the gradient's bits and the step, not a random generator: it costs no
    memory traffic, a resumed run repeats it, and every shard of an array computes its own part.
    """
    steps = state.count.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)

    def one(salt: int, moment: Array, gradient: Array) -> Array:
        seed = jax.lax.bitcast_convert_type(gradient.astype(jnp.float32), jnp.uint32)
        noise = _hash(seed ^ (steps + jnp.uint32(salt))) & jnp.uint32(0xFFFF)
        bits = jax.lax.bitcast_convert_type(moment, jnp.uint32)
        kept = (bits + noise) & jnp.uint32(0xFFFF0000)
        return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)

    return state._replace(
        mu=jax.tree.map(functools.partial(one, 0), state.mu, gradients),
        nu=jax.tree.map(functools.partial(one, 1), state.nu, gradients),
    )


def _hash(x: Array) -> Array:
    """Mixes the bits of each uint32: multiplications and shifts that change half of them."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)

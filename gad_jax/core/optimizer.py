"""AdamW after a global-norm clip, written so that a compiled step updates the moments in place.

How the moments are stored is in `moments.py`.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from gad_jax.core import moments
from gad_jax.core.hosted import Hosted
from gad_jax.distributed import devices
from gad_jax.settings.optimizer import Optimizer

_FALLS = {
    "linear": functools.partial(optax.linear_schedule, 1.0, 0.0),
    "cosine": functools.partial(optax.cosine_decay_schedule, 1.0),
}
"""The schedules from 1 to 0 over a number of steps."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What the steps [start, end) of a run multiply learning rates with: it falls from 1 towards 0.

    "linear" falls by as much in every step, "cosine" along half a wave (arXiv:1608.03983).
    """

    start: int
    end: int
    shape: Literal["linear", "cosine"]

    def factor(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns the factor of a step: 1 at `start`, above 0 before `end`."""
        return jnp.asarray(_FALLS[self.shape](self.end - self.start)(step - self.start))


@functools.cache  # jit compares by identity: equal settings must not be traced and compiled again
def adamw(options: Optimizer, rate: float) -> optax.GradientTransformationExtraArgs:
    """Returns the clip and AdamW as one optax transformation, at a learning rate.

    Its `update` takes `factor`, which the rate is multiplied with; None is 1. Where `finite` is
    False, the moments do not change. With `applied=False` the result is only to be looked at, and
    needs no memory. `norm` is the global norm of the gradients, where those that are given are a
    part of them.
    """
    rule = optax.chain(
        _clip(options.max_gradient_norm),
        optax.chain(
            _scale_by_adam(options),
            optax.add_decayed_weights(options.weight_decay),
            _scale_by_rate(rate),
        ),
    )
    return Hosted(*rule) if options.placement == "host" else rule


def _clip(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` as a multiplication by one factor.

    optax divides each leaf. A division is expensive, so XLA does not repeat it in the fusions that
    read it, but stores its result: a second copy of the gradients.
    """

    def clip(
        updates: Any, state: optax.OptState, params: Any = None, *, norm: Any = None, **_: Any
    ) -> tuple[Any, optax.OptState]:
        norm = optax.tree.norm(updates) if norm is None else norm
        factor = jnp.minimum(1.0, max_norm / norm)
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, clip)


def _scale_by_rate(rate: float) -> optax.GradientTransformationExtraArgs:
    plain = optax.scale_by_learning_rate(rate)

    def scale(
        updates: Any,
        state: optax.OptState,
        params: Any = None,
        *,
        factor: Float[Array, ""] | None = None,
        **_: Any,
    ) -> tuple[Any, optax.OptState]:
        updates, state = plain.update(updates, state, params)
        return updates if factor is None else jax.tree.map(lambda u: u * factor, updates), state

    return optax.GradientTransformationExtraArgs(plain.init, scale)


def _scale_by_adam(options: Optimizer) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam` whose updates are computed from the new stored moments only.

    If XLA read the old moments for the updates too, it would have to copy them before it overwrites
    them. The barrier prevents that. On a GPU one kernel updates moments and weights, which a
    barrier would make two: they would read the moments again, 8 bytes per parameter.
    """
    betas = options.beta1, options.beta2
    plain = optax.scale_by_adam(*betas, options.epsilon)

    def init(params: Any) -> optax.OptState:
        return moments.stored(options.moments, plain.init(params))

    def update(
        updates: Any,
        state: optax.OptState,
        params: Any = None,
        *,
        finite: Bool[Array, ""] | bool = True,
        applied: bool = True,
        **_: Any,
    ) -> tuple[Any, optax.OptState]:
        new = plain.update(updates, moments.wide(state))[1]
        new = moments.narrow(options.moments, new, state, updates, *betas)
        if applied:
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
            if devices.platform() != "gpu":
                new = jax.lax.optimization_barrier(new)
        wide = moments.wide(new)
        first = optax.tree.bias_correction(wide.mu, options.beta1, wide.count)
        second = optax.tree.bias_correction(wide.nu, options.beta2, wide.count)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + options.epsilon), first, second)
        return scaled, new

    return optax.GradientTransformationExtraArgs(init, update)

"""AdamW after a global-norm clip, arranged so that a compiled step updates the moments in place."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from gad_jax.settings.sections import Optimizer


def adamw(options: Optimizer, rate: float) -> optax.GradientTransformationExtraArgs:
    """Returns what makes of a gradient an update of the parameters, at a constant learning rate.

    Its `update` takes `finite`: where that is False the moments stay as they are.
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
    """`optax.clip_by_global_norm`, but by a factor: a quotient is too dear to be computed again in
    each of the fusions that use it, and would be stored, as large as the gradient."""

    def clip(gradients: Any, params: Any) -> Any:
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(gradients))
        return jax.tree.map(lambda g: g * factor, gradients)

    return optax.stateless(clip)


def _scale_by_adam(options: Optimizer) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam` whose updates are computed from the new moments alone.

    Were the old ones read for the updates as well as for the new moments, they would have to be
    copied before they are overwritten. The barrier keeps the two apart.
    """
    plain = optax.scale_by_adam(options.beta1, options.beta2, options.epsilon)

    def update(
        updates: Any,
        state: optax.OptState,
        params: Any = None,
        *,
        finite: Bool[Array, ""] | bool = True,
        **_: Any,
    ) -> tuple[Any, optax.OptState]:
        new = plain.update(updates, state)[1]
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        new = jax.lax.optimization_barrier(new)
        assert isinstance(new, optax.ScaleByAdamState)
        first = optax.tree.bias_correction(new.mu, options.beta1, new.count)
        second = optax.tree.bias_correction(new.nu, options.beta2, new.count)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + options.epsilon), first, second)
        return scaled, new

    return optax.GradientTransformationExtraArgs(plain.init, update)

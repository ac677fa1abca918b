"""From a loss to an update: gradients summed over micro-batches, applied unless non-finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from gad_jax.core.program import Program
from gad_jax.distributed import parallel
from gad_jax.types import Metrics, PackedRows, Params, TrainState


def accumulate(
    loss: Callable[..., tuple[Array, Any]], params: Params, rows: PackedRows, *shared: Any
) -> tuple[Array, Params, Any]:
    """Returns the sum of `loss(params, micro-batch, *shared)` over micro-batches, its gradient, and
    each one's extras.

    A replica sums the gradients of its own rows; those of all replicas meet once, after the last
    micro-batch. So the loss is that of all rows in each of them, its gradient that of its own.
    Arrays that come from outside are `shared`: inside of a replica a loss cannot close over them.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def local(params: Params, rows: PackedRows, *shared: Any) -> tuple[Array, Params, Any]:
        if rows.tokens.shape[0] == 1:
            micro = jax.tree.map(lambda x: x[0], rows)
            (value, extra), gradients = value_and_grad(params, micro, *shared)
            extra = jax.tree.map(lambda x: x[None], extra)
        else:

            def add(carry: Any, micro: PackedRows) -> tuple[Any, Any]:
                (value, extra), gradients = value_and_grad(params, micro, *shared)
                return jax.tree.map(jnp.add, carry, (value, gradients)), extra

            start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
            (value, gradients), extra = jax.lax.scan(add, start, rows)
        return value, parallel.psum_over_replicas(gradients), extra

    split = jax.tree.map(lambda _: P(None, "replica"), rows)
    specs = (P(), split._replace(ends=P(), groups=P()), *(P() for _ in shared))
    return parallel.replica_map(local, specs, P())(params, rows, *shared)


def commit(
    program: Program,
    state: TrainState,
    generator: Params | None,
    discriminator: Params | None,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """Applies the gradients that there are, unless anything is not finite."""
    norms, broken = {}, {}
    for name, gradients in (("generator", generator), ("discriminator", discriminator)):
        if gradients is not None:
            squares = jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)])
            norms[f"{name}/gradient_norm"] = jnp.sqrt(jnp.sum(squares))
            lost = ~jnp.isfinite(squares)
            broken[f"{name}/broken_leaf"] = jnp.where(jnp.any(lost), jnp.argmax(lost), -1)
    values = [value for name, value in metrics.items() if name.endswith("/loss")]
    finite = jnp.all(jnp.isfinite(jnp.stack([*values, *norms.values()])))

    def update(
        optimizer: optax.GradientTransformationExtraArgs,
        gradients: Params | None,
        params: Any,
        moments: Any,
    ) -> tuple[Any, Any]:
        if gradients is None:
            return params, moments
        # where something is not finite, the optimizer keeps its moments: it updates them in place
        updates, moments = optimizer.update(gradients, moments, params, finite=finite)
        new = optax.apply_updates(params, updates)
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, params), moments

    with jax.named_scope("optimizer"):
        new_generator = update(
            program.generator_optimizer, generator, state.generator, state.generator_optimizer
        )
        new_discriminator = update(
            program.discriminator_optimizer,
            discriminator,
            state.discriminator,
            state.discriminator_optimizer,
        )
    skips = jnp.where(finite, jnp.stack([state.skips[0], 0]), state.skips + 1)
    state = state._replace(
        step=state.step + 1,
        generator=new_generator[0],
        generator_optimizer=new_generator[1],
        discriminator=new_discriminator[0],
        discriminator_optimizer=new_discriminator[1],
        skips=skips,
    )
    counts = {"skips/total": skips[0], "skips/in_a_row": skips[1]}
    return state, metrics | norms | broken | counts

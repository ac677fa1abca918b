"""From a loss to an update: gradients summed over micro-batches, applied if all stays finite."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from gad_jax.core import hosted
from gad_jax.core.hosted import Hosted
from gad_jax.core.program import Program
from gad_jax.distributed import devices, parallel
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Metrics, PackedRows, Params, TrainState


class Update(NamedTuple):
    """What a step found for one network; `gradients` is None where the network is frozen.

    Where `gated` is True, the network and its moments stay as they are; None is never.
    """

    loss: Float[Array, ""]
    gradients: Params | None
    metrics: Metrics
    gated: Bool[Array, ""] | None = None


def accumulate(
    loss: Callable[..., tuple[Array, Any]],
    network: DecoderConfig,
    params: Params,
    rows: PackedRows,
    *shared: Any,
) -> tuple[Array, Params, Any]:
    """Returns the sum of `loss(params, micro-batch, *shared)` over micro-batches, its gradient, and
    the extras of each micro-batch. Gradients are float32.

    Each replica sums the gradients of its own rows, and one psum after the last micro-batch adds up
    those of all replicas; a psum per micro-batch would send as much each time. So the loss is that
    of all rows in each replica, its gradient that of the replica's rows. Other arrays are passed as
    `shared`: inside `jax.shard_map` a loss cannot close over them.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    params = _rounded(network, params, rows)

    def in_replica(params: Params, rows: PackedRows, *shared: Any) -> tuple[Array, Params, Any]:
        if rows.tokens.shape[0] == 1:  # no scan: it would hold a second set of gradients
            micro = jax.tree.map(lambda x: x[0], rows)
            (value, extra), gradients = value_and_grad(params, micro, *shared)
            if devices.platform() == "gpu":
                # Scores are known before the backward pass. XLA would begin with the next network
                # then, and hold what both forward passes have saved at once.
                layers = gradients["layers"]
                extra, layers = jax.lax.optimization_barrier((extra, layers))
                gradients = {**gradients, "layers": layers}
            extra = jax.tree.map(lambda x: x[None], extra)
            gradients = jax.tree.map(lambda x: x.astype(jnp.float32), gradients)
        else:

            def add(carry: Any, micro: PackedRows) -> tuple[Any, Any]:
                (value, extra), gradients = value_and_grad(params, micro, *shared)
                return jax.tree.map(jnp.add, carry, (value, gradients)), extra

            zeros = partial(jnp.zeros_like, dtype=jnp.float32)
            start = (jnp.zeros(()), jax.tree.map(zeros, params))
            (value, gradients), extra = jax.lax.scan(add, start, rows)
        return value, parallel.psum_over_replicas(gradients), extra

    trees = (tree for tree in (params, *shared) if isinstance(tree, dict))  # of networks
    if any("experts" in tree.get("layers", {}) for tree in trees):
        # XLA's partitioner (jaxlib 0.12) aborts on a mixture inside of a manual replica axis. The
        # gradients are then summed over the replicas in every micro-batch.
        return in_replica(params, rows, *shared)
    split = jax.tree.map(lambda _: P(None, "replica"), rows)
    specs = (P(), split._replace(ends=P(), groups=P()), *(P() for _ in shared))
    return parallel.replica_map(in_replica, specs, P())(params, rows, *shared)


def rounds_once(micro_batches: int, shards: int) -> bool:
    """Returns whether a step rounds kernels before its passes: several micro-batches share that,
    and so do the passes of one on a single device.

    On several devices each pass of one micro-batch rounds its shards. XLA copies slices of rounded
    shards outside of its CUDA graphs, which costs more than the bytes that they save.
    """
    return micro_batches > 1 or shards == 1


def _rounded(network: DecoderConfig, params: Params, rows: PackedRows) -> Params:
    shards = math.prod(jax.sharding.get_abstract_mesh().shape.values())
    return decoder.rounded(network, params) if rounds_once(len(rows.tokens), shards) else params


def commit(
    program: Program,
    state: TrainState,
    generator: Update | None,
    discriminator: Update | None,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """Applies both updates, or neither where one of them has a number that is non-finite.

    That may be a loss, a gradient, an updated weight or an updated moment. An update that is None
    leaves its network alone, and so does one that is gated: the other network moves all the same.
    Returns the metrics with those of the updates.
    """
    rules = program.generator_optimizer, program.discriminator_optimizer
    if program.schedule is not None:
        factor = program.schedule.factor(state.step)
        rules = [rule._replace(update=partial(rule.update, factor=factor)) for rule in rules]
        metrics = metrics | {"learning_rate_factor": factor}
    updates = {"generator": (generator, rules[0]), "discriminator": (discriminator, rules[1])}
    watched = []
    for name, (update, optimizer) in updates.items():
        if update is None:
            continue
        metrics = metrics | update.metrics | {f"{name}/loss": update.loss}
        watched.append(jnp.isfinite(update.loss))
        if update.gradients is not None:
            moments = getattr(state, f"{name}_optimizer")
            found = _look(optimizer, update.gradients, getattr(state, name), moments)
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
            watched += [jnp.isfinite(found["gradient_norm"]), found["broken_update"] < 0]
    finite = jnp.all(jnp.stack(watched))
    moved = {}
    with jax.named_scope("optimizer"):
        for name, (update, optimizer) in updates.items():
            params, moments = getattr(state, name), getattr(state, f"{name}_optimizer")
            gated = None if update is None else update.gated
            applied = finite if gated is None else finite & ~gated
            params, moments = _apply(optimizer, update, params, moments, applied)
            moved |= {name: params, f"{name}_optimizer": moments}
    skips = jnp.where(finite, jnp.stack([state.skips[0], 0]), state.skips + 1)
    state = state._replace(step=state.step + 1, skips=skips, **moved)
    return state, metrics | {"skips/total": skips[0], "skips/consecutive": skips[1]}


def _look(
    optimizer: optax.GradientTransformationExtraArgs, gradients: Params, params: Any, moments: Any
) -> Metrics:
    """Returns the gradient's norm, and which leaf of it and of the update is broken, or -1."""
    norm, broken = _gradient_norm(gradients)
    update = _broken_update(optimizer, gradients, params, moments)
    return {"gradient_norm": norm, "broken_leaf": broken, "broken_update": update}


def _gradient_norm(gradients: Params) -> tuple[Float[Array, ""], Array]:
    """Returns the global norm, and the index of the first leaf whose sum of squares is non-finite,
    or -1."""
    squares = jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)])
    return jnp.sqrt(jnp.sum(squares)), _first_broken(squares)


def _broken_update(
    optimizer: optax.GradientTransformationExtraArgs, gradients: Params, params: Any, moments: Any
) -> Array:
    """Returns the index of the first leaf whose weights or moments the update would break, or -1.

    A weight is broken where its square overflows: no forward pass can use it. The update is
    computed here only to be looked at, and again where it is applied, because keeping it would hold
    second copies of weights and moments. So gradients, weights and moments are read once more: 16
    bytes per trained parameter.
    """
    with jax.named_scope("finite_update"):
        if isinstance(optimizer, Hosted):
            sums = hosted.look(
                optimizer, gradients, params, moments, lambda x, y: _sum_of_both(jnp.square(x), y)
            )
            return _first_broken(jnp.stack(sums))
        # Behind the barrier, the compiler cannot keep these results for the update itself.
        params, moments = jax.lax.optimization_barrier((params, moments))
        changes, moments = optimizer.update(gradients, moments, params, finite=True, applied=False)
        new = jax.tree.leaves(optax.apply_updates(params, changes))
        others = [leaf for leaf in jax.tree.leaves(moments) if leaf.ndim]
        sums = [
            _sum_of_both(jnp.square(leaf), others[number :: len(new)])
            for number, leaf in enumerate(new)
        ]
        return _first_broken(jnp.stack(sums))


def _first_broken(sums: Array) -> Array:
    broken = ~jnp.isfinite(sums)
    return jnp.where(jnp.any(broken), jnp.argmax(broken), -1)


def _sum_of_both(x: Array, others: list[Array]) -> Array:
    """Returns the sum of x and of the other arrays' sizes, in one reduction of two operands.

    XLA computes their terms inside of it. On a CPU it would store those of a `jnp.sum` first.
    """
    operands = x, sum((jnp.abs(other.astype(x.dtype)) for other in others), jnp.zeros_like(x))
    zero = jnp.zeros((), x.dtype)

    def add(left: Any, right: Any) -> Any:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    first, second = jax.lax.reduce(operands, (zero, zero), add, tuple(range(x.ndim)))
    return first + second


def _apply(
    optimizer: optax.GradientTransformationExtraArgs,
    update: Update | None,
    params: Any,
    moments: Any,
    applied: Bool[Array, ""],
) -> tuple[Any, Any]:
    if update is None or update.gradients is None:
        return params, moments
    if isinstance(optimizer, Hosted):
        return hosted.apply(optimizer, update.gradients, params, moments, applied)
    # `finite` reaches the optimizer too: it writes its moments in place, so no old copy is kept
    changes, moments = optimizer.update(update.gradients, moments, params, finite=applied)
    new = optax.apply_updates(params, changes)
    return jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, params), moments

"""Updates of a network whose moments are in the memory of the host.

The device holds them for one layer at a time: a scan over the layers brings those of each over, and
sends the new ones back. Parameters outside of the layers are whole ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from gad_jax.types import Params


class Hosted(optax.GradientTransformationExtraArgs):
    """An optimizer whose state, but for its scalars, is in the memory of the host."""


class _Part(NamedTuple):
    """Some parameters, their gradients, and the optimizer's arrays of them, by kind (mu, nu)."""

    params: list[Array]
    gradients: list[Array]
    arrays: list[list[Array]]


def apply(
    optimizer: Hosted, gradients: Params, params: Params, moments: Any, applied: Bool[Array, ""]
) -> tuple[Params, Any]:
    """Returns the network and its moments after an update; as they are where `applied` is False."""
    norm = optax.tree.norm(gradients)
    whole, scalars = _parts(params, gradients, moments)

    def change(part: _Part) -> _Part:
        before = _state(optimizer, part, scalars)
        given = (part.gradients, before, part.params)
        changes, after = optimizer.update(*given, finite=applied, norm=norm)
        new: Any = optax.apply_updates(part.params, changes)
        kept = [jnp.where(applied, a, b) for a, b in zip(new, part.params, strict=True)]
        return part._replace(params=kept, arrays=_by_kind(after, len(kept)))

    def layer(carry: Any, given: Any) -> Any:
        number, params = carry
        now = [jax.lax.dynamic_index_in_dim(x, number, keepdims=False) for x in params]
        new = change(_on_device(_Part(now, *given)))
        update = jax.lax.dynamic_update_index_in_dim
        params = [update(x, y, number, 0) for x, y in zip(params, new.params, strict=True)]
        return (number + 1, params), _moved(new.arrays, jax.memory.Space.Host)

    layered, others = _split(params, whole)
    found = {}
    for number in others:
        new = change(_on_device(_chosen(whole, [number])))
        found[number] = (
            new.params[0],
            [_moved(kind[0], jax.memory.Space.Host) for kind in new.arrays],
        )
    if layered:
        of_layers = _chosen(whole, layered)
        start = jnp.int32(0), of_layers.params
        (_, after), arrays = jax.lax.scan(layer, start, (of_layers.gradients, of_layers.arrays))
        for place, number in enumerate(layered):
            found[number] = after[place], [kind[place] for kind in arrays]
    ordered = [found[number] for number in range(len(found))]
    counts = [jnp.where(applied, optax.safe_increment(one), one) for one in scalars]
    arrays = [[of_leaf[kind] for _, of_leaf in ordered] for kind in range(len(whole.arrays))]
    return (
        jax.tree.unflatten(jax.tree.structure(params), [new for new, _ in ordered]),
        _filled(moments, counts, arrays),
    )


def look(
    optimizer: Hosted,
    gradients: Params,
    params: Params,
    moments: Any,
    total: Callable[[Array, list[Array]], Array],
) -> list[Array]:
    """Returns `total(updated parameter, its updated moments)` of every parameter, of a layered one
    the sum over its layers; nothing is changed."""
    norm = optax.tree.norm(gradients)
    whole, scalars = _parts(params, gradients, moments)

    def totals(part: _Part) -> list[Array]:
        given = (part.gradients, _state(optimizer, part, scalars), part.params)
        changes, after = optimizer.update(*given, finite=True, applied=False, norm=norm)
        new: Any = optax.apply_updates(part.params, changes)
        arrays = _by_kind(after, len(new))
        return [total(leaf, [kind[n] for kind in arrays]) for n, leaf in enumerate(new)]

    layered, others = _split(params, whole)
    found = {}
    for number in others:
        # Behind the barrier, the compiler cannot keep these results for the update itself.
        part = jax.lax.optimization_barrier(_chosen(whole, [number]))
        found[number] = totals(_on_device(part))[0]
    if layered:

        def layer(_: None, part: _Part) -> tuple[None, list[Array]]:
            return None, totals(_on_device(part))

        sums = jax.lax.scan(layer, None, _chosen(whole, layered))[1]
        found |= {n: jnp.sum(one) for n, one in zip(layered, sums, strict=True)}
    return [found[number] for number in range(len(found))]


def sum_of_sizes(x: Array) -> Float[Array, ""]:
    """Returns Σ|x|; of a stack of matrices on the host, one at a time comes to the device."""

    def size(part: Array) -> Array:
        part = jax.device_put(part, jax.memory.Space.Device) if on_host else part
        return jnp.sum(jnp.abs(part.astype(jnp.float32)))

    on_host = jax.typeof(x).memory_space == jax.memory.Space.Host
    return jnp.sum(jax.lax.map(size, x)) if on_host and x.ndim > 2 else size(x)


def _parts(params: Params, gradients: Params, moments: Any) -> tuple[_Part, list[Array]]:
    """Returns all parameters as a part, and the optimizer's scalars."""
    leaves = jax.tree.leaves(params)
    scalars = [leaf for leaf in jax.tree.leaves(moments) if not leaf.ndim]
    part = _Part(leaves, jax.tree.leaves(gradients), _by_kind(moments, len(leaves)))
    return part, scalars


def _by_kind(state: Any, count: int) -> list[list[Array]]:
    """Returns the arrays of a state of so many parameters, by kind."""
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    return [arrays[start : start + count] for start in range(0, len(arrays), count)]


def _filled(state: Any, scalars: list[Array], arrays: list[list[Array]]) -> Any:
    """Returns a state with other scalars and arrays."""
    leaves, structure = jax.tree.flatten(state)
    numbers, others = iter(scalars), iter(leaf for kind in arrays for leaf in kind)
    return jax.tree.unflatten(
        structure, [next(others) if leaf.ndim else next(numbers) for leaf in leaves]
    )


def _state(optimizer: Hosted, part: _Part, scalars: list[Array]) -> Any:
    return _filled(jax.eval_shape(optimizer.init, part.params), scalars, part.arrays)


def _split(params: Params, whole: _Part) -> tuple[list[int], list[int]]:
    """Returns the numbers of the parameters that are taken layer by layer, and of the others.

    Of a stack of vectors, moments of 8 bits may have one scale for several layers; it stays whole.
    """
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    layered = [
        number
        for number, (path, leaf) in enumerate(zip(paths, whole.params, strict=True))
        if getattr(path[0], "key", "") == "layers"
        and all(kind[number].shape[0] == leaf.shape[0] for kind in whole.arrays)
    ]
    return layered, [number for number in range(len(paths)) if number not in layered]


def _chosen(whole: _Part, numbers: list[int]) -> _Part:
    def some(leaves: list[Array]) -> list[Array]:
        return [leaves[number] for number in numbers]

    return _Part(some(whole.params), some(whole.gradients), [some(kind) for kind in whole.arrays])


def _on_device(part: _Part) -> _Part:
    return part._replace(arrays=_moved(part.arrays, jax.memory.Space.Device))


def _moved(tree: Any, space: Any) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, space), tree)

"""`jax.shard_map` and collectives over the data axes of the mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from gad_jax.distributed import mesh
from gad_jax.distributed.mesh import DATA_AXES
from gad_jax.distributed.sharding import manual_axes, spec


def batch_spec(axis: int) -> P | None:
    """Returns the spec of an array whose `axis` is split over the data shards."""
    return spec(*(None,) * axis, "batch")


def shard_map(
    function: Callable[..., Any],
    in_specs: Any,
    out_specs: Any,
    axes: tuple[str, ...] = DATA_AXES,
) -> Callable[..., Any]:
    """`jax.shard_map` over the data axes of the mesh, or over the given axes.

    The remaining axes, such as tensor, stay under the mesh's control. Without a mesh this is the
    function itself. The gradient of an argument with spec P() is summed over the shards once, at
    the end.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(
        function,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=set(axes) - set(manual_axes()),
        check_vma=False,
    )


def replica_map(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`jax.shard_map` over the replica axis; the other axes stay under the mesh's control.

    The specs say which arguments and results are split over "replica". With one replica, without a
    mesh, or where `mesh.SHARDS_STAY` is False, this is the function itself.
    """
    if jax.sharding.get_abstract_mesh().shape.get("replica", 1) == 1 or not mesh.SHARDS_STAY:
        return function
    return shard_map(function, in_specs, out_specs, axes=("replica",))


def psum_over_replicas(tree: Any) -> Any:
    """Returns the sums over the replicas inside `replica_map`, and the tree itself elsewhere."""
    return jax.lax.psum(tree, "replica") if "replica" in manual_axes() else tree


def all_gather_over_replicas(x: jax.Array) -> jax.Array:
    """Returns the parts of all replicas along the first axis inside `replica_map`, else x.

    A gradient flows into the replica's own part only: the others have theirs in their replicas.
    """
    if "replica" not in manual_axes():
        return x
    parts = jax.lax.all_gather(jax.lax.stop_gradient(x), "replica", tiled=True)
    own = jax.lax.axis_index("replica") * x.shape[0]
    return jax.lax.dynamic_update_slice_in_dim(parts, x, own, axis=0)

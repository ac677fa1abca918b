"""The device mesh and where everything lives on it: two tables, and the one jit wrapper.

A parameter's path gives its logical axes (`PARAMETER_AXES`), a logical axis gives mesh axes
(`MESH_AXES`). The mesh has Explicit axis types: sharding is part of every array's type, gathers of
FSDP shards stand in the program, and a mistake fails when a function is traced.
"""

import contextlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.base.errors import UserError

logger = logging.getLogger(__name__)

AXIS_NAMES = ("replica", "fsdp", "tensor")
DATA_AXES = ("replica", "fsdp")
"""The mesh axes over which a batch is split."""

SHARDS_STAY = jax.__version_info__ >= (0, 11, 2)
"""Whether `jax.shard_map` over one axis leaves alone what others split; before, it gathers that."""

MESH_AXES: dict[str | None, str | tuple[str, ...] | None] = {
    # parameters
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_width": None,
    "mlp": "tensor",
    "vocabulary": "tensor",
    "scale": None,
    # activations; "embed" of an activation is never split, so it is written None
    "batch": DATA_AXES,
    None: None,
}

PARAMETER_AXES: dict[str, tuple[str | None, ...]] = {
    r"embedding": ("vocabulary", "embed"),
    r"layers/(attention|mlp)_norm/scale": ("layers", "scale"),
    r"layers/(query|key)_norm/scale": ("layers", "scale"),
    r"layers/query/kernel": ("layers", "embed", "heads"),
    r"layers/query/bias": ("layers", "heads"),
    r"layers/(key|value)/kernel": ("layers", "embed", "kv_heads"),
    r"layers/(key|value)/bias": ("layers", "kv_heads"),
    r"layers/output/kernel": ("layers", "heads", "embed"),
    r"layers/(gate|up)/kernel": ("layers", "embed", "mlp"),
    r"layers/down/kernel": ("layers", "mlp", "embed"),
    r"final_norm/scale": ("scale",),
    r"head/kernel": ("embed", "vocabulary"),
    r"score/kernel": ("scale", None),
    r"score/bias": (None,),
}


def make_mesh(replica: int = 1, fsdp: int = 0, tensor: int = 1, devices: Any = None) -> Mesh:
    """Returns the mesh (replica, fsdp, tensor) over `devices`, by default all of them.

    fsdp = 0 takes what the other two leave. Raises UserError when the product does not fit.
    """
    count = jax.device_count() if devices is None else len(devices)
    fsdp = fsdp or max(count // (replica * tensor), 1)
    if replica * fsdp * tensor != count:
        raise UserError(
            f"mesh replica={replica} × fsdp={fsdp} × tensor={tensor} needs "
            f"{replica * fsdp * tensor} devices, but {count} are present; set --mesh.replica, "
            "--mesh.fsdp and --mesh.tensor to a product of that number"
        )
    if replica > 1 and not SHARDS_STAY:
        logger.warning(
            "jax %s sums the replicas' gradients in every micro-batch; jax 0.11.2, on Python 3.12, "
            "does so once a step",
            jax.__version__,
        )
    grid = _arrange((replica, fsdp, tensor), jax.devices() if devices is None else devices)
    return Mesh(grid, AXIS_NAMES, axis_types=(AxisType.Explicit,) * 3)


def _arrange(shape: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """Returns the devices in this shape by how they are wired: across nodes go replicas, then fsdp.

    A tensor axis across nodes works, and is slow: there is a warning.
    """
    attribute, nodes = _nodes(devices)
    if nodes == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    across, left = [], nodes
    for size in shape:
        across.append(math.gcd(left, size))
        left //= across[-1]
    if across[2] > 1:
        if attribute == "slice_index":
            logger.warning(
                "mesh.tensor=%d spans nodes of %d devices, whose network is slow; use a tensor "
                "axis that divides a node, and fsdp or replica for the rest",
                shape[2],
                len(devices) // nodes,
            )
        return np.asarray(devices).reshape(shape)
    inside = [size // parts for size, parts in zip(shape, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        inside,
        across,
        devices,
        process_is_granule=attribute == "process_index",
        allow_split_physical_axes=True,
    )


def _nodes(devices: Sequence[Any]) -> tuple[str, int]:
    """Returns the attribute that tells fast-wired groups of devices apart, and their number.

    That is a GPU node or a TPU slice where the platform says so (`slice_index`), else a process,
    but not on a TPU, whose wires lead out of the host. Groups of different sizes count as one.
    """
    attribute = "slice_index" if hasattr(devices[0], "slice_index") else "process_index"
    if attribute == "process_index" and devices[0].platform == "tpu":
        return attribute, 1
    groups = [getattr(device, attribute) for device in devices]
    counts = {groups.count(group) for group in groups}
    return attribute, len(set(groups)) if len(counts) == 1 else 1


def data_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of parts in which a batch is split."""
    return mesh.shape["replica"] * mesh.shape["fsdp"]


def manual_axes() -> tuple[str, ...]:
    """Returns the mesh axes that an enclosing `jax.shard_map` has taken over."""
    return jax.sharding.get_abstract_mesh().manual_axes


def spec(*logical: str | None) -> P | None:
    """Returns the PartitionSpec of these logical axes, or None where no mesh is set.

    It is meant for `out_sharding` arguments, for which None says that there is nothing to decide.
    Axes that an enclosing `jax.shard_map` has taken over are left out.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return None
    manual = manual_axes()

    def axes(name: str | None) -> str | tuple[str, ...] | None:
        mesh_axes = MESH_AXES[name]
        if not isinstance(mesh_axes, tuple):
            return None if mesh_axes in manual else mesh_axes
        return tuple(axis for axis in mesh_axes if axis not in manual) or None

    return P(*(axes(name) for name in logical))


def along(axis: int) -> P | None:
    """Returns the spec of an array whose `axis` is split over the data shards."""
    return spec(*(None,) * axis, "batch")


def locally(
    function: Callable[..., Any],
    in_specs: Any,
    out_specs: Any,
    axes: tuple[str, ...] = DATA_AXES,
) -> Callable[..., Any]:
    """Returns what applies the function in each data shard, or each part along other mesh axes; in
    it the axes that are left, such as tensor, are as before.

    Without a mesh there is one shard. The gradient of an argument that all shards share is summed
    over them once, at the end.
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


def in_each_replica(
    function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Returns what applies the function in each replica; in it the other axes are as before.

    The specs say which arguments and results are split over "replica". With one replica, without a
    mesh, or where `SHARDS_STAY` is False, that is the function itself.
    """
    if jax.sharding.get_abstract_mesh().shape.get("replica", 1) == 1 or not SHARDS_STAY:
        return function
    return locally(function, in_specs, out_specs, axes=("replica",))


def sum_of_replicas(tree: Any) -> Any:
    """Returns, inside of `in_each_replica`, the sums over the replicas."""
    return jax.lax.psum(tree, "replica") if "replica" in manual_axes() else tree


def of_all_replicas(x: jax.Array) -> jax.Array:
    """Returns, inside of `in_each_replica`, the parts of all replicas along the first axis.

    A gradient flows into the replica's own part only.
    """
    if "replica" not in manual_axes():
        return x
    parts = jax.lax.all_gather(jax.lax.stop_gradient(x), "replica", tiled=True)
    own = jax.lax.axis_index("replica") * x.shape[0]
    return jax.lax.dynamic_update_slice_in_dim(parts, x, own, axis=0)


def mesh_spec(*logical: str | None) -> P:
    """Returns the PartitionSpec of these logical axes."""
    return P(*(MESH_AXES[axis] for axis in logical))


def reshard(x: jax.Array, *logical: str | None) -> jax.Array:
    """Returns x laid out by these logical axes; unchanged where no mesh is set."""
    target = spec(*logical)
    return x if target is None else jax.reshard(x, target)


def gather(x: jax.Array, *logical: str | None) -> jax.Array:
    """Returns a parameter with its FSDP shards gathered; `logical` are the parameter's axes."""
    return reshard(x, *(None if MESH_AXES[axis] == "fsdp" else axis for axis in logical))


def path_name(path: Any) -> str:
    """Returns a tree path as 'layers/query/kernel'."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def parameter_axes(path: str) -> tuple[str | None, ...]:
    """Returns the logical axes of the parameter at this path; an unlisted path is an error."""
    matches = [axes for pattern, axes in PARAMETER_AXES.items() if re.fullmatch(pattern, path)]
    if len(matches) != 1:
        raise KeyError(f"{path}: {len(matches)} rows of PARAMETER_AXES match it; it needs one")
    return matches[0]


def parameter_spec(path: str) -> P:
    """Returns the PartitionSpec of the parameter at this path."""
    return P(*(MESH_AXES[axis] for axis in parameter_axes(path)))


def parameter_specs(params: Any) -> Any:
    """Returns the tree of PartitionSpecs of a parameter tree."""
    return jax.tree_util.tree_map_with_path(lambda path, _: parameter_spec(path_name(path)), params)


def with_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns abstract arrays (from `jax.eval_shape` under the mesh) with concrete shardings."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        partition = P() if leaf.sharding is None else leaf.sharding.spec
        sharding = NamedSharding(mesh, partition)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def put(tree: Any, mesh: Mesh, *logical: str | None) -> Any:
    """Copies host arrays to the devices; `logical` names the leading axes of every leaf.

    Each process holds the whole array on its host and sends the parts of its own devices.
    """

    def one(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        axes = (*logical, *(None,) * (leaf.ndim - len(logical)))
        sharding = NamedSharding(mesh, P(*(MESH_AXES[axis] for axis in axes)))
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(one, tree)


def fetch(tree: Any) -> Any:
    """Returns device arrays as whole numpy arrays, also where shards live on other hosts."""

    def one(leaf: jax.Array) -> np.ndarray:
        if not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(jax.device_get(leaf))

    return jax.tree.map(one, tree)


_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def device_bytes(tree: Any) -> int:
    """Returns the bytes of a tree's largest part on one device; arrays or their shapes."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        size = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += math.prod(shape) * size
    return total


def device_memory() -> int:
    """Returns the bytes that a device has; on a CPU the machine's, shared by its devices."""
    devices = jax.local_devices()
    known = (devices[0].memory_stats() or {}).get("bytes_limit")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return known or machine // len(devices)


def peak_memory() -> int:
    """Returns the most bytes that this process's first device has held; 0 on a CPU, which does not
    count them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def platform() -> str:
    """Returns what programs are compiled for: 'cpu', 'gpu' or 'tpu'."""
    return _platform.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Makes `platform` answer `name` inside: for programs that will run on another machine."""
    token = _platform.set(name)
    try:
        yield
    finally:
        _platform.reset(token)


class CompileCounter:
    """Counts the programs that XLA compiled (or took from its cache on disk) in this process."""

    _EVENT = "/jax/core/compile/backend_compile_duration"

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == self._EVENT:
            self.count += 1
            self.seconds += duration_secs


def jit(function: Callable[..., Any] | None = None, *, static: Any = (), donate: Any = ()) -> Any:
    """`jax.jit` by argument names: the one wrapper, so that every compiled step looks the same.

    Shardings come with the arguments' types, so none are given here.
    """
    if function is None:
        return partial(jit, static=static, donate=donate)
    return jax.jit(function, static_argnames=static, donate_argnames=donate)

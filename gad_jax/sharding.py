"""The device mesh and where everything lives on it: two tables, and the one jit wrapper.

A parameter's path gives its logical axes (`PARAMETER_AXES`), a logical axis gives mesh axes
(`MESH_AXES`). The mesh has Explicit axis types: sharding is part of every array's type, gathers of
FSDP shards stand in the program, and a mistake fails when a function is traced.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.errors import UserError

AXIS_NAMES = ("replica", "fsdp", "tensor")

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
    "batch": ("replica", "fsdp"),
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
    shape = (replica, fsdp, tensor)
    if devices is None:  # laid out by how they are wired
        return jax.make_mesh(shape, AXIS_NAMES, axis_types=(AxisType.Explicit,) * 3)
    grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, AXIS_NAMES, axis_types=(AxisType.Explicit,) * 3)


def data_shards(mesh: Mesh) -> int:
    """Returns the number of parts in which a batch is split."""
    return mesh.shape["replica"] * mesh.shape["fsdp"]


def spec(*logical: str | None) -> P | None:
    """Returns the PartitionSpec of these logical axes, or None where no mesh is set.

    It is meant for `out_sharding` arguments, for which None says that there is nothing to decide.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return None
    return mesh_spec(*logical)


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

"""Where every array lives on the device mesh: two tables.

A parameter's path gives its logical axes (`PARAMETER_AXES`), a logical axis gives mesh axes
(`MESH_AXES`). The mesh has Explicit axis types: sharding is part of every array's type, FSDP
all-gathers are written in the program, and a mistake fails when a function is traced.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.distributed.mesh import DATA_AXES

MESH_AXES: dict[str | None, str | tuple[str, ...] | None] = {
    # parameters
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_width": None,
    "mlp": "tensor",
    "experts": "tensor",  # whole ones
    "vocabulary": "tensor",
    "scale": None,
    "scaled": ("tensor", "fsdp"),  # the outputs of block scales, whose inputs are too few
    # activations; "embed" of an activation is never split, so it is written None
    "batch": DATA_AXES,
    None: None,
}

PARAMETER_AXES: dict[str, tuple[str | None, ...]] = {
    r"embedding": ("vocabulary", "embed"),
    r"layers/(attention|mlp)_(post_)?norm/scale": ("layers", "scale"),
    r"layers/(query|key)_norm/scale": ("layers", "scale"),
    r"layers/query/kernel": ("layers", "embed", "heads"),
    r"layers/query/bias": ("layers", "heads"),
    r"layers/(key|value)/kernel": ("layers", "embed", "kv_heads"),
    r"layers/(key|value)/bias": ("layers", "kv_heads"),
    r"layers/qkv/kernel": ("layers", "embed", "kv_heads"),
    r"layers/qkv/bias": ("layers", "kv_heads"),
    r"layers/output/kernel": ("layers", "heads", "embed"),
    r"layers/(gate|up)/kernel": ("layers", "embed", "mlp"),
    r"layers/(gate|up)/bias": ("layers", "mlp"),
    r"layers/gate_up/kernel": ("layers", "embed", None, "mlp"),
    r"layers/gate_up/bias": ("layers", None, "mlp"),
    r"layers/down/kernel": ("layers", "mlp", "embed"),
    r"layers/(output|down)/bias": ("layers", "scale"),
    r"layers/qkv/turned": ("layers", "kv_heads", "embed"),
    r"layers/output/turned": ("layers", "embed", "heads"),
    r"layers/gate_up/turned": ("layers", None, "mlp", "embed"),
    r"layers/down/turned": ("layers", "embed", "mlp"),
    r"layers/(query|key|value|gate|up)/lora_a": ("layers", "embed", None),
    r"layers/output/lora_a": ("layers", "heads", None),
    r"layers/down/lora_a": ("layers", "mlp", None),
    r"layers/query/lora_b": ("layers", None, "heads"),
    r"layers/(key|value)/lora_b": ("layers", None, "kv_heads"),
    r"layers/(gate|up)/lora_b": ("layers", None, "mlp"),
    r"layers/(output|down)/lora_b": ("layers", None, "embed"),
    r"layers/query/kernel/codes": ("layers", "embed", "heads"),
    r"layers/(key|value)/kernel/codes": ("layers", "embed", "kv_heads"),
    r"layers/output/kernel/codes": ("layers", "heads", "embed"),
    r"layers/(gate|up)/kernel/codes": ("layers", "embed", "mlp"),
    r"layers/down/kernel/codes": ("layers", "mlp", "embed"),
    r"layers/(query|key|value|output|gate|up|down)/kernel/scales": ("layers", None, "scaled"),
    r"layers/experts/router/kernel": ("layers", "embed", None),
    r"layers/experts/(gate|up)/kernel": ("layers", "experts", "embed", None),
    r"layers/experts/down/kernel": ("layers", "experts", None, "embed"),
    r"final_norm/scale": ("scale",),
    r"head/kernel": ("embed", "vocabulary"),
    r"score/kernel": ("scale", None),
    r"score/bias": (None,),
}


def manual_axes() -> tuple[str, ...]:
    """Returns the mesh axes that an enclosing `jax.shard_map` has made manual."""
    return jax.sharding.get_abstract_mesh().manual_axes


def spec(*logical: str | None) -> P | None:
    """Returns the PartitionSpec of these logical axes, or None where no mesh is set.

    It is meant for `out_sharding` arguments, where None leaves the choice to jax. Axes that an
    enclosing `jax.shard_map` has made manual are left out.
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


def mesh_spec(*logical: str | None) -> P:
    """Returns the PartitionSpec of these logical axes."""
    return P(*(MESH_AXES[axis] for axis in logical))


def spec_of(x: jax.Array) -> P | None:
    """Returns the PartitionSpec that an array has, or None where no mesh is set, as `spec` does."""
    return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding.spec


def parts(x: jax.Array, axes: slice = slice(None)) -> int:
    """Returns into how many parts an array is split along these axes of it."""
    layout = jax.typeof(x).sharding
    names = jax.tree.leaves(tuple(layout.spec)[axes])  # an axis has no name, one, or several
    return math.prod(layout.mesh.shape[name] for name in names)


def reshard(x: jax.Array, *logical: str | None) -> jax.Array:
    """Returns x laid out by these logical axes; unchanged where no mesh is set."""
    target = spec(*logical)
    return x if target is None else jax.reshard(x, target)


def gather(x: jax.Array, *logical: str | None) -> jax.Array:
    """Returns a parameter with its FSDP shards gathered; `logical` are the parameter's axes."""
    return reshard(x, *gathered_axes(*logical))


def gathered_axes(*logical: str | None) -> tuple[str | None, ...]:
    """Returns the logical axes that a parameter keeps when its FSDP shards are gathered."""

    def is_split(axis: str | None) -> bool:
        mesh_axes = MESH_AXES[axis]
        return "fsdp" in ((mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ())

    return tuple(None if is_split(axis) else axis for axis in logical)


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


def placed(params: Any, mesh: Mesh) -> Any:
    """Returns the shapes of a parameter tree with the shardings that its paths give."""

    def one(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, parameter_spec(path_name(path)))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(one, params)


def with_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns abstract arrays (from `jax.eval_shape` under the mesh) with concrete shardings."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        partition = P() if leaf.sharding is None else leaf.sharding.spec
        sharding = NamedSharding(mesh, partition)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, tree)

"""The device mesh: its three axes, and which device stands where."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from gad_jax.base.errors import UserError

logger = logging.getLogger(__name__)

AXIS_NAMES = ("replica", "fsdp", "tensor")


DATA_AXES = ("replica", "fsdp")
"""The mesh axes over which a batch is split."""


SHARDS_STAY = jax.__version_info__ >= (0, 11, 2)
"""Whether `jax.shard_map` over one axis keeps arrays sharded over the other axes. Older versions of
jax gather them first."""


def make_mesh(replica: int = 1, fsdp: int = 0, tensor: int = 1, devices: Any = None) -> Mesh:
    """Returns the mesh (replica, fsdp, tensor) over `devices`, by default all of them.

    fsdp = 0 takes all devices that the other two leave. Raises UserError where the product of the
    axes is not the number of devices.
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
    """Returns the devices in this shape by their wiring: replicas go across nodes first, then fsdp.

    A tensor axis across nodes works but is slow, so there is a warning.
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
    """Returns the attribute that tells groups of devices with fast links apart, and their number.

    A group is a GPU node or a TPU slice where the platform says so (`slice_index`), else a process.
    On a TPU the fast links leave the host, so there all devices are one group. Groups of different
    sizes count as one.
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

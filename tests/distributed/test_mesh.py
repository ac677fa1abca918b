"""A mesh that takes all devices, and lays them out by their wires."""

import re
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from gad_jax.base.errors import UserError
from gad_jax.distributed.mesh import _arrange, data_shards, make_mesh


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ({}, (1, 8, 1)),
        ({"tensor": 2}, (1, 4, 2)),
        ({"replica": 2, "tensor": 2}, (2, 2, 2)),
        ({"replica": 8}, (8, 1, 1)),
        ({"fsdp": 4, "tensor": 2}, (1, 4, 2)),
    ],
)
def test_the_mesh_takes_all_devices(asked: dict[str, int], shape: tuple[int, ...]) -> None:
    mesh = make_mesh(**asked)
    assert mesh.axis_names == ("replica", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert mesh.axis_types == (AxisType.Explicit,) * 3
    assert {*mesh.devices.flat} == {*jax.devices()}
    assert data_shards(mesh) == shape[0] * shape[1]


def test_the_mesh_may_take_some_devices() -> None:
    mesh = make_mesh(1, 0, 2, jax.devices()[:4])
    assert mesh.devices.shape == (1, 2, 2)
    assert [*mesh.devices.flat] == jax.devices()[:4]
    assert mesh.axis_types == (AxisType.Explicit,) * 3


def gpus(nodes: int, per_node: int, per_process: int) -> list[Any]:
    """Devices as jax describes those of GPU nodes: the node is the `slice_index`."""
    return [
        SimpleNamespace(
            id=number,
            process_index=number // per_process,
            slice_index=number // per_node,
            platform="gpu",
            device_kind="NVIDIA H100 80GB HBM3",
        )
        for number in range(nodes * per_node)
    ]


def nodes_along(grid: np.ndarray, axis: int) -> set[int]:
    """Returns how many nodes the lines of devices along an axis touch."""
    lines = np.moveaxis(grid, axis, -1).reshape(-1, grid.shape[axis])
    return {len({device.slice_index for device in line}) for line in lines}


@pytest.mark.parametrize("per_process", [1, 8])
@pytest.mark.parametrize(
    ("shape", "nodes"),
    [
        ((2, 4, 2), (2, 1, 1)),  # replicas across nodes, the rest inside
        ((1, 8, 2), (1, 2, 1)),  # fsdp has to go across
        ((2, 8, 1), (2, 1, 1)),
        ((4, 2, 2), (2, 1, 1)),
        ((1, 2, 8), (1, 2, 1)),
    ],
)
def test_two_gpu_nodes(shape: tuple[int, int, int], nodes: Any, per_process: int) -> None:
    devices = gpus(2, 8, per_process)
    grid = _arrange(shape, devices[::-1])
    assert grid.shape == shape
    assert {device.id for device in grid.flat} == set(range(16))
    assert [max(nodes_along(grid, axis)) for axis in range(3)] == list(nodes)


def test_a_tensor_axis_across_nodes_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert _arrange((1, 1, 16), gpus(2, 8, 8)).shape == (1, 1, 16)
    assert "mesh.tensor=16 spans nodes of 8 devices" in caplog.text


def test_a_tpu_slice_is_laid_out_by_its_wires() -> None:
    """A 4 × 4 torus of four hosts: neighbours along the tensor axis are neighbours on it."""
    devices = [
        SimpleNamespace(
            id=4 * y + x,
            process_index=2 * (y // 2) + x // 2,
            slice_index=0,
            platform="tpu",
            device_kind="TPU v6 lite",
            coords=(x, y, 0),
            core_on_chip=0,
        )
        for y in range(4)
        for x in range(4)
    ]
    for shape in ((1, 4, 4), (1, 8, 2), (2, 4, 2), (1, 16, 1)):
        grid = _arrange(shape, devices)
        assert grid.shape == shape
        assert {device.id for device in grid.flat} == set(range(16))
        pairs = zip(grid[..., :-1].flat, grid[..., 1:].flat, strict=True)
        for one, other in pairs:
            assert sum(a != b for a, b in zip(one.coords, other.coords, strict=True)) == 1


def test_two_tpu_slices_hold_a_replica_each() -> None:
    devices = [
        SimpleNamespace(
            id=16 * slice_index + 4 * y + x,
            process_index=4 * slice_index + y,
            slice_index=slice_index,
            platform="tpu",
            device_kind="TPU v6 lite",
            coords=(x, y, 0),
            core_on_chip=0,
        )
        for slice_index in range(2)
        for y in range(4)
        for x in range(4)
    ]
    grid = _arrange((2, 8, 2), devices)
    assert [max(nodes_along(grid, axis)) for axis in range(3)] == [2, 1, 1]


@pytest.mark.parametrize(
    ("asked", "product"),
    [((3, 0, 1), "replica=3 × fsdp=2 × tensor=1 needs 6"),
     ((2, 2, 4), "replica=2 × fsdp=2 × tensor=4 needs 16"),
     ((1, 0, 16), "replica=1 × fsdp=1 × tensor=16 needs 16")],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_names_its_axes(asked: tuple[int, ...], product: str) -> None:
    message = (
        f"mesh {product} devices, but 8 are present; set --mesh.replica, --mesh.fsdp and "
        "--mesh.tensor to a product of that number"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make_mesh(*asked)

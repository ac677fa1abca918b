"""Where arrays live: one row per parameter, a mesh that fits, whole arrays in and out, compiles."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.base.errors import UserError
from gad_jax.core.optimizer import adamw
from gad_jax.distributed import devices, sharding
from gad_jax.distributed.mesh import _arrange, data_shards, make_mesh
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import FAMILIES
from gad_jax.settings.sections import Optimizer


def network(family: str, **switches: Any) -> DecoderConfig:
    return DecoderConfig(
        family=family,
        vocabulary=64,
        width=16,
        mlp_width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_width=4,
        rope_theta=1e4,
        norm_epsilon=1e-6,
        max_positions=64,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        **switches,
    )


def networks() -> list[DecoderConfig]:
    kinds = ({"tied": True}, {"tied": False}, {"head": "score"}, {"head": "score", "tied": True})
    return [network(family, **kind) for family in FAMILIES for kind in kinds]


def paths(tree: Any) -> dict[str, Any]:
    return {sharding.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_every_parameter_has_exactly_one_row() -> None:
    used = set()
    for config in networks():
        for path, leaf in paths(decoder.abstract(config)).items():
            rows = [row for row in sharding.PARAMETER_AXES if re.fullmatch(row, path)]
            assert len(rows) == 1, (config.family, path, rows)
            axes = sharding.parameter_axes(path)
            assert len(axes) == leaf.ndim, path
            on_mesh = [sharding.MESH_AXES[axis] for axis in axes if sharding.MESH_AXES[axis]]
            assert len(set(on_mesh)) == len(on_mesh), f"{path} splits twice over one mesh axis"
            used |= {*rows}
    assert used == {*sharding.PARAMETER_AXES}, "a row that no family needs"


@pytest.mark.parametrize("path", ["layers/rotation/kernel", "layers/query", "head/bias", "x/score"])
def test_an_unlisted_parameter_is_an_error(path: str) -> None:
    with pytest.raises(KeyError, match=f"{path}: 0 rows of PARAMETER_AXES match"):
        sharding.parameter_axes(path)


def test_a_parameter_with_two_rows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sharding.PARAMETER_AXES, "embed.*", ("vocabulary", "embed"))
    with pytest.raises(KeyError, match="embedding: 2 rows"):
        sharding.parameter_specs({"embedding": 0})


def test_specs_are_the_two_tables_together() -> None:
    specs = paths(sharding.parameter_specs(decoder.abstract(network("qwen2"))))
    assert specs["embedding"] == P("tensor", "fsdp")
    assert specs["layers/query/kernel"] == P(None, "fsdp", "tensor")
    assert specs["layers/query/bias"] == P(None, "tensor")
    assert specs["layers/down/kernel"] == P(None, "tensor", "fsdp")
    assert specs["final_norm/scale"] == P(None)
    assert specs["head/kernel"] == P("fsdp", "tensor")


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


def test_put_and_fetch_are_inverse() -> None:
    mesh = make_mesh(2, 2, 2)
    random = np.random.default_rng(0)
    tree = {
        "tokens": random.integers(0, 9, (8, 5)).astype(np.int32),
        "logprobs": random.normal(size=(4, 3, 2)).astype(np.float32),
        "mask": random.integers(0, 2, (4,)).astype(bool),
    }
    there = devices.put(tree, mesh, "batch")
    for name, leaf in there.items():
        assert leaf.sharding == NamedSharding(
            mesh, P(("replica", "fsdp"), *(None,) * (leaf.ndim - 1))
        )
        shards = {shard.data.shape for shard in leaf.addressable_shards}
        assert shards == {(leaf.shape[0] // 4, *leaf.shape[1:])}, name
    back = devices.fetch(there)
    for name, leaf in tree.items():
        assert back[name].dtype == leaf.dtype
        np.testing.assert_array_equal(back[name], leaf)


def test_put_without_axes_copies_to_every_device() -> None:
    mesh = make_mesh()
    step, row = devices.put((np.int32(7), np.arange(3)), mesh)
    assert step.sharding.is_fully_replicated
    assert len(row.addressable_shards) == 8
    assert (int(devices.fetch(step)), devices.fetch(row).tolist()) == (7, [0, 1, 2])


def test_put_may_leave_the_first_axis_whole() -> None:
    mesh = make_mesh()
    rows = devices.put(np.zeros((3, 16, 2)), mesh, None, "batch")
    assert {shard.data.shape for shard in rows.addressable_shards} == {(3, 2, 2)}


def test_without_a_mesh_there_is_nothing_to_decide() -> None:
    x = jnp.arange(4.0)
    assert sharding.spec("batch", None) is None
    assert sharding.reshard(x, "batch") is x
    assert sharding.gather(x, "embed") is x


def test_gather_undoes_fsdp_alone() -> None:
    mesh = make_mesh(1, 4, 2)
    kernel = np.arange(32.0, dtype=np.float32).reshape(8, 4)
    with jax.set_mesh(mesh):
        there = jax.device_put(kernel, NamedSharding(mesh, P("fsdp", "tensor")))
        whole = jax.jit(lambda x: sharding.gather(x, "embed", "mlp"))(there)
        assert sharding.spec("batch", None) == P(("replica", "fsdp"), None)
    assert {shard.data.shape for shard in there.addressable_shards} == {(2, 2)}
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8, 2)}
    np.testing.assert_array_equal(devices.fetch(whole), kernel)


def on(mesh: Mesh, config: DecoderConfig) -> Any:
    """Returns random parameters, laid out as the table says."""
    params = decoder.init(config, jax.random.key(0))
    specs = sharding.parameter_specs(params)
    return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), params, specs)


@pytest.mark.parametrize("head", ["vocabulary", "score"])
def test_optimizer_moments_live_with_their_parameters(head: str) -> None:
    mesh = make_mesh(1, 4, 2)
    config = dataclasses.replace(network("qwen2"), head=head)
    optimizer = adamw(Optimizer(), 1e-3)
    with jax.set_mesh(mesh):
        params = on(mesh, config)
        moments = jax.jit(optimizer.init)(params)
        expected = sharding.with_shardings(jax.eval_shape(optimizer.init, params), mesh)
    adam = moments[1][0]
    assert isinstance(adam, optax.ScaleByAdamState)
    for tree in (adam.mu, adam.nu):
        found = paths(tree)
        for path, leaf in paths(params).items():
            assert found[path].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), path
            assert found[path].sharding.spec == sharding.parameter_spec(path)
    # what a checkpoint is read into has the shapes and places of what was made
    for made, asked in zip(jax.tree.leaves(moments), jax.tree.leaves(expected), strict=True):
        assert (made.shape, made.dtype) == (asked.shape, asked.dtype)
        assert made.sharding.is_equivalent_to(asked.sharding, made.ndim)


def test_a_compile_is_counted_and_a_cached_call_is_not() -> None:
    counter = devices.CompileCounter()
    short, long = (jax.device_put(np.ones(n, np.float32)) for n in (3, 4))
    function = jax.jit(lambda x: x * 3 + 1)
    counts = []
    for x in (short, short, long, short, long):
        function(x)
        counts.append(counter.count)
    assert np.subtract(counts, counts[0]).tolist() == [0, 0, 1, 1, 1]
    assert counts[0] >= 1
    assert counter.seconds > 0

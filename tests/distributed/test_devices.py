"""Arrays from the host to the devices and back, and compiles that are counted."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.base.cache import program_dir
from gad_jax.base.errors import UserError
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh


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


def test_programs_are_kept_where_the_cache_is() -> None:
    before = jax.config.jax_compilation_cache_dir
    try:
        devices.keep_programs()
        assert jax.config.jax_compilation_cache_dir == str(program_dir())
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("platform", "capability", "refused"),
    [
        ("gpu", (8, 9), ""),
        ("cuda", (9, 0), ""),
        ("gpu", (12, 0), ""),
        ("cpu", (), ""),
        ("gpu", (8, 6), r"is a card, of compute capability 8\.6; give --student\.matmul=auto"),
        ("gpu", (), r"8\.9 or later .* the device is a card; give"),  # not NVIDIA's
        ("tpu", (), r"--student\.matmul=float8 needs an NVIDIA GPU"),
    ],
)
def test_devices_without_matmuls_of_8_bit_floats_are_refused(
    platform: str, capability: tuple[int, ...], refused: str
) -> None:
    if not refused:
        devices.require_float8("a card", platform, capability)
        return
    with pytest.raises(UserError, match=refused):
        devices.require_float8("a card", platform, capability)


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t\t: fpu sse2 avx2 avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu sse2 avx2 fma", False),
    ],
)
def test_instructions_for_bfloat16(tmp_path: Path, flags: str, has: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nbugs\t\t:\n")
    assert devices.cpu_multiplies_bfloat16(tmp_path / "cpuinfo") == has


def test_a_system_that_does_not_say_is_not_warned(tmp_path: Path) -> None:
    assert devices.cpu_multiplies_bfloat16(tmp_path / "cpuinfo")


def test_a_cpu_has_no_compute_capability() -> None:
    assert devices.capability() == ()


def test_what_is_on_the_host_stays_there_in_shapes_of_an_abstract_mesh() -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    for where in (mesh, mesh.abstract_mesh):
        hosted = devices.on_host(NamedSharding(where, P("fsdp")))
        shape = jax.ShapeDtypeStruct((4,), "float32", sharding=hosted)
        assert (hosted.memory_kind, hosted.spec) == (devices.HOST, P("fsdp"))
        assert (devices.host_bytes(shape), devices.device_bytes(shape)) == (16, 0)


def test_devices_without_memories_keep_the_kind_by_an_abstract_mesh(monkeypatch) -> None:
    """As those have that are only compiled for."""
    mesh = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(NamedSharding, "with_memory_kind", lambda self, _: self)
    hosted = devices.on_host(NamedSharding(mesh, P()))
    assert hosted.memory_kind == devices.HOST
    assert hosted.mesh == mesh.abstract_mesh

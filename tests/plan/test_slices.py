"""Seconds of a few layers of a run's networks on this machine, and what follows from them."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gad_jax.distributed import chips, devices, targets
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models.config import DecoderConfig, LayerKind, Rope, alike
from gad_jax.plan import estimate, slices, workload
from gad_jax.settings.config import Config
from gad_jax.settings.sections import Batch, Data, Rollout, Student

NETWORK = DecoderConfig(
    family="llama", vocabulary=64, width=32, mlp_width=64, layers=6, heads=2, kv_heads=1,
    head_width=16, kinds=alike(1e4), norm_epsilon=1e-6, max_positions=512, compute_dtype="float32",
)  # fmt: skip
JUDGE = dataclasses.replace(NETWORK, layers=3, head="score")
TARGET = targets.parse("cpu:1")
CHIP = chips.Chip("cpu", 1e11, 1e10, 1e10, 1e10, 1e10, 0.5, 0.0, "a machine for tests")


def config(**batch: int) -> Config:
    return Config(
        stage="gad",
        student=Student(remat="dots"),
        data=Data(max_prompt_tokens=16),
        batch=Batch(**{"prompts": 4, "row_tokens": 64} | batch),
        rollout=Rollout(samples=2, max_new_tokens=16, slots=4),
    )


def drawn(settings: Config) -> workload.Workload:
    return workload.draw(settings, workload.LognormalLengths(6.0, 8.0), TARGET)


def test_seconds_grow_between_two_depths_in_proportion_to_the_work() -> None:
    timed: list[tuple[int, int]] = []

    def depths(pair: slices.Networks) -> float:
        return 3 * pair[0].layers + pair[1].layers

    def seconds(pair: slices.Networks) -> float:
        timed.append((pair[0].layers, pair[1].layers))
        return 0.5 + 0.25 * depths(pair)

    found = slices._extrapolated((NETWORK, JUDGE), depths, seconds)
    assert found == pytest.approx(0.5 + 0.25 * (3 * 6 + 3))
    assert timed == [(1, 1), (4, 3)]


def test_a_network_of_one_layer_is_run_whole() -> None:
    one = (dataclasses.replace(NETWORK, layers=1), dataclasses.replace(JUDGE, layers=1))
    assert slices._extrapolated(one, lambda _: 1.0, lambda _: 2.0) == 2.0


def test_a_slice_keeps_the_kinds_of_its_layers() -> None:
    kinds = (LayerKind(Rope(1e4)), LayerKind(Rope(1e4), window=8))
    mixed = dataclasses.replace(NETWORK, kinds=kinds, pattern=(1, 1, 0, 1, 1, 0))
    cut, _ = slices._cut((mixed, JUDGE), 3)
    assert [cut.kind(layer) for layer in range(3)] == [mixed.kind(layer) for layer in range(3)]
    assert (cut.layers, len(cut.pattern)) == (3, 3)


def test_some_rows_of_the_first_micro_batch_stand_for_a_larger_step() -> None:
    work = drawn(config(prompts=32, micro_batch_prompts=16))
    micro, rows, length = work.pairs.tokens.shape
    assert micro == 2
    assert rows > 4
    part = slices._part(work, 2 / (micro * rows), shards=1)
    assert part.pairs.tokens.shape == part.pairs.segments.own.shape == (1, 2, length)
    assert part.pairs.ends.shape == (1, *work.pairs.ends.shape[1:])
    assert len(part.responses) == 16  # those of a micro-batch
    least = slices._part(work, 1e-9, shards=2)
    assert least.samples.tokens.shape[:2] == (1, 2)  # a row of each data shard
    assert slices._part(work, 1e9, shards=1).pairs.tokens.shape == (1, rows, length)


def test_the_programs_of_a_run_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "BUDGET", 1e-3)
    monkeypatch.setattr(slices, "DEPTHS", (1, 2))
    settings, both = config(prompts=8, micro_batch_prompts=4), (NETWORK, JUDGE)
    work, mesh = drawn(settings), make_mesh(devices=jax.devices()[:1])
    measured = slices.measure(settings, both, mesh, TARGET, CHIP, work)["gad"]
    assert {(call.slots, call.capacity) for call in work.calls} == measured.decode.keys()
    step = estimate.step(settings, "gad", both, TARGET, CHIP, work, [], measured=measured)
    assert step.measured
    seconds = {phase.name: phase.seconds for phase in step.phases}
    updates = sum(s for name, s in seconds.items() if not name.startswith("rollout"))
    assert updates == pytest.approx(measured.update)
    assert seconds["rollout: decode"] == pytest.approx(measured.decoding(work.calls))
    assert seconds["rollout: prefill"] == pytest.approx(measured.prefill)


@pytest.mark.parametrize("machine", [{"memory": 1e5}, {"flops": 1e3}])
def test_a_slice_that_is_too_large_is_not_run(machine: dict[str, float]) -> None:
    """Four layers would not fit, or a row would take hours."""
    settings, small = config(), dataclasses.replace(CHIP, **machine)
    mesh = make_mesh(devices=jax.devices()[:1])
    assert slices.measure(settings, (NETWORK, JUDGE), mesh, TARGET, small, drawn(settings)) == {}


def test_a_stage_without_samples_times_no_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_update", lambda *_: 1.5)
    settings, mesh = dataclasses.replace(config(), stage="seqkd"), make_mesh()
    found = slices.measure(settings, (NETWORK, JUDGE), mesh, TARGET, CHIP, drawn(settings))
    assert found == {"seqkd": estimate.Measured(1.5, 0.0, {})}


def test_zeros_are_made_where_moments_are_on_the_host() -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    where = devices.on_host(NamedSharding(mesh, PartitionSpec()))
    shape = jax.ShapeDtypeStruct((2, 3), "float32", sharding=where)
    found = slices._zeros(shape)
    assert found.sharding.memory_kind == devices.HOST
    np.testing.assert_array_equal(found, np.zeros((2, 3)))

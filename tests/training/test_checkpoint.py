"""Checkpoints on eight simulated devices: exact on any mesh, and bounded in number."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.base.errors import StorageError, UserError
from gad_jax.distributed import devices
from gad_jax.training import digest, records
from gad_jax.training.checkpoint import Checkpoints
from tests.training.checkpoint_states import abstract, host, make_mesh, make_params, make_state


@pytest.fixture
def mesh() -> Mesh:
    return make_mesh()


def test_restores_every_bit_with_types_and_meta(tmp_path: Path, mesh: Mesh) -> None:
    state = make_state(mesh)
    meta = {
        "step": 7,
        "stage": "gad",
        "metrics": {"generator/loss": 0.1, "kl": 1e-300},
        "list": [1],
    }
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    on_host = {"tokens": np.arange(5, dtype=np.uint16), "lengths": np.ones((2, 3), np.int32)}
    assert checkpoints.save(7, state, meta, score=0.25, host=on_host)
    assert checkpoints.latest() == checkpoints.best() == 7
    assert checkpoints.read_meta(7) == meta
    step, restored, found, arrays = checkpoints.restore(lambda _: abstract(state))
    assert arrays.keys() == on_host.keys()
    for name, array in on_host.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    assert (step, found) == (7, meta)
    assert host(restored) == host(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert abstract(restored) == abstract(state)
    assert jax.random.bits(restored.key) == jax.random.bits(jax.random.key(0))
    checkpoints.close()


def test_keeps_values_that_compare_unequal_or_equal_wrongly(tmp_path: Path, mesh: Mesh) -> None:
    words = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0, 0x7F800000, 1], np.uint32)
    state = {
        "float32": jax.device_put(words.view(np.float32), NamedSharding(mesh, P())),
        "bfloat16": jax.device_put(jnp.arange(6, dtype=jnp.bfloat16), NamedSharding(mesh, P())),
        "bool": jax.device_put(np.array([True, False]), NamedSharding(mesh, P("tensor"))),
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    assert host(checkpoints.restore(lambda _: abstract(state)).state) == host(state)
    checkpoints.close()


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (2, 2), (1, 1)])
def test_restores_on_another_mesh(tmp_path: Path, mesh: Mesh, shape: tuple[int, int]) -> None:
    state = make_state(mesh)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    target = abstract(state, make_mesh(*shape))
    restored = checkpoints.restore(lambda _: target).state
    assert host(restored) == host(state)
    assert abstract(restored) == target
    assert digest.digests(restored) == digest.digests(state)
    checkpoints.close()


def test_large_arrays_are_written_by_all_their_replicas(tmp_path: Path, mesh: Mesh) -> None:
    replicated = NamedSharding(mesh, P())
    small = {
        f"scale{width}": jax.device_put(np.ones((width, 8), np.float32), replicated)
        for width in range(8, 80, 8)
    }
    large = np.arange(8 * records.LEAST_PART_BYTES // 4, dtype=np.float32).reshape(8, -1)
    checkpoints, compiled = Checkpoints(tmp_path), devices.CompileCounter()
    checkpoints.save(1, small, {})
    assert compiled.count == 0  # to take a part of an array is a program
    state = small | {"kernel": jax.device_put(large, replicated)}
    checkpoints.save(2, state, {})
    assert compiled.count > 0
    assert host(checkpoints.restore(lambda _: abstract(state)).state) == host(state)
    checkpoints.close()


def test_restores_a_part(tmp_path: Path, mesh: Mesh) -> None:
    state = make_state(mesh)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    part = {"generator": abstract(state.generator)}
    restored = checkpoints.restore(lambda _: part, subset=True).state
    assert host(restored) == host({"generator": state.generator})
    with pytest.raises(UserError, match="absent here"):
        checkpoints.restore(lambda _: part)
    checkpoints.close()


def test_state_may_be_donated_while_it_is_written(tmp_path: Path, mesh: Mesh) -> None:
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0.5 + 1, tree), donate_argnums=0)
    sharding = NamedSharding(mesh, P("fsdp"))
    with jax.set_mesh(mesh):
        state = {
            str(i): jax.device_put(np.full((64, 1 << 14), i, np.float32), sharding)
            for i in range(16)
        }
        state = step(state)
        want, target = host(state), abstract(state)
        checkpoints = Checkpoints(tmp_path, background=True)
        checkpoints.save(1, state, {})
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
    checkpoints.wait()
    assert host(checkpoints.restore(lambda _: target).state) == want
    assert host(state) != want
    checkpoints.close()


def test_keeps_the_newest_and_the_best(tmp_path: Path, mesh: Mesh) -> None:
    scores = {1: 0.1, 2: 0.9, 3: None, 4: 0.2, 5: float("nan"), 6: None}
    checkpoints = Checkpoints(tmp_path, keep=2, keep_best=True)
    kept = []
    for step, score in scores.items():
        checkpoints.save(step, make_state(mesh, step), {"step": step}, score)
        kept.append(checkpoints.steps())
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6]]
    assert checkpoints.best() == 2
    checkpoints.close()
    reopened = Checkpoints(tmp_path, keep=1, keep_best=True)
    assert (reopened.best(), reopened.latest()) == (2, 6)
    reopened.save(7, make_state(mesh, 7), {}, 0.95)
    assert (reopened.steps(), reopened.best()) == ([7], 7)
    reopened.close()


def test_without_keep_best_only_the_newest_stay(tmp_path: Path, mesh: Mesh) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, keep_best=False)
    for step in range(1, 5):
        checkpoints.save(step, make_state(mesh, step), {}, score=float(-step))
    assert checkpoints.steps() == [3, 4]
    checkpoints.close()


def test_saves_a_step_once(tmp_path: Path, mesh: Mesh) -> None:
    checkpoints = Checkpoints(tmp_path, background=True)
    assert checkpoints.save(1, make_state(mesh), {"n": 1})
    assert not checkpoints.save(1, make_state(mesh), {"n": 2})
    assert checkpoints.read_meta(1) == {"n": 1}
    checkpoints.close()


def test_other_settings_are_the_users_mistake(tmp_path: Path, mesh: Mesh) -> None:
    state = make_state(mesh)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    with pytest.raises(UserError) as error:
        checkpoints.restore(lambda _: abstract(make_state(mesh, width=32)))
    assert (
        "1 does not fit these settings: generator/layers/kernel is float32[3,16,8] there and "
        in (str(error.value))
    )
    assert "float32[3,32,8] here (and 6 more leaves differ)" in str(error.value)
    with pytest.raises(UserError, match=r"reference/layers/kernel is .* there and absent here"):
        checkpoints.restore(lambda _: abstract(state._replace(reference=None)))
    other = state._replace(skips=state.step)
    with pytest.raises(UserError, match=r"skips is int32\[2\] there and int32\[\] here; use"):
        checkpoints.restore(lambda _: abstract(other))
    assert checkpoints.steps() == [1]
    checkpoints.close()


def test_a_full_disk_is_noticed_before_writing(
    tmp_path: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="No space left"):
        checkpoints.save(1, make_state(mesh), {})
    assert list(tmp_path.iterdir()) == []
    checkpoints.close()


def test_directories_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be (written|read)"):
        Checkpoints(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be (written|read)"):
        Checkpoints(tmp_path / "missing", read_only=True)
    assert not (tmp_path / "missing").exists()


def test_a_reader_leaves_a_running_save_alone(tmp_path: Path, mesh: Mesh) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(mesh), {})
    checkpoints.close()
    unfinished = tmp_path / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.restore(lambda _: abstract(make_state(mesh))).step == 1
    reader.close()
    assert unfinished.exists()
    owner = Checkpoints(tmp_path)
    owner.save(2, make_state(mesh), {})
    owner.close()
    assert not unfinished.exists()


def test_a_score_may_come_later(tmp_path: Path, mesh: Mesh) -> None:
    state = make_state(mesh)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state, {"stage": "gad"}, score=0.1)
    checkpoints.save(2, state, {"stage": "gad"})
    checkpoints.rescore(2, 0.2)
    assert checkpoints.steps() == [2]  # nothing else would remove what was the best before
    checkpoints.rescore(2, 0.2, {"best": 2})
    assert checkpoints.best() == 2
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=1)
    assert again.best() == 2
    assert again.read_meta(2) == {"stage": "gad", "best": 2}
    assert host(again.restore(lambda _: abstract(state)).state) == host(state)
    again.save(3, state, {"stage": "gad"})
    assert again.steps() == [2, 3]
    again.rescore(2, float("nan"))
    assert again.best() is None
    again.close()


def test_a_removal_that_was_cut_short_is_finished(tmp_path: Path, mesh: Mesh) -> None:
    state = make_state(mesh)
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state, {}, score=0.5 if step == 1 else None)
    checkpoints.close()
    shutil.rmtree(tmp_path / "2" / "state")  # a process was killed in the middle of it
    again = Checkpoints(tmp_path, keep=1)
    assert again.steps() == [1, 2, 3, 4]  # until the newest is known to be intact
    assert again.restore(lambda _: abstract(state)).step == 4
    assert again.steps() == [1, 4]
    assert again.save(5, state, {})
    assert again.steps() == [1, 5]
    again.close()


def test_the_room_for_all_that_stands_side_by_side_is_asked_for(
    tmp_path: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two newest, the best and the one being written, and the export; less what is there."""

    def room(nbytes: int) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=nbytes)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    checkpoints = Checkpoints(tmp_path, keep=2)
    size = 10**9
    room(4 * size + 5)
    checkpoints.require_space(size, 5)
    with pytest.raises(StorageError, match=r"4 checkpoints of 1.00 GB .* the best, the one being"):
        checkpoints.require_space(size, 6)
    checkpoints.require_space(size + 1, 2, best=False)
    checkpoints.require_space(size, 2, answers=3)
    with pytest.raises(StorageError, match=r"the export of 0.00, the student's answers of 0.00; f"):
        checkpoints.require_space(size, 2, answers=4)
    room(10**9)
    checkpoints.save(1, make_state(mesh), {})
    (tmp_path / "0.corrupt-20261128T000000").mkdir()
    (tmp_path / "0.corrupt-20261128T000000" / "data").write_bytes(bytes(10**6))
    state = sum(path.stat().st_size for path in (tmp_path / "1").rglob("*"))
    room(4 * 10**6 - state)
    checkpoints.require_space(10**6)
    room(4 * 10**6 - state - 1)  # what is set aside as damaged stays
    with pytest.raises(StorageError, match="free some, lower"):
        checkpoints.require_space(10**6)
    checkpoints.close()


GOLDEN = Path(__file__).parents[1] / "golden"
"""Checkpoints as each version of the layout wrote them; another FORMAT needs another:

    Checkpoints(GOLDEN / "format-N").save(7, make_state(make_mesh(), 3), {"step": 7}, score=0.5)
"""


@pytest.mark.parametrize("version", [1, records.FORMAT])
def test_a_checkpoint_of_every_version_is_still_read(
    tmp_path: Path, mesh: Mesh, version: int
) -> None:
    shutil.copytree(GOLDEN / f"format-{version}", tmp_path / "checkpoints")
    wanted = make_state(mesh, seed=3)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    step, restored, meta, _ = checkpoints.restore(lambda _: abstract(wanted))
    assert (step, meta, checkpoints.best()) == (7, {"step": 7}, 7)
    assert host(restored) == host(wanted)
    checkpoints.close()


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path: Path, mesh: Mesh) -> None:
    states = {step: {"params": make_params(mesh, step)} for step in (1, 2, 3)}
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step, state in states.items():
        checkpoints.save(step, state, {})
    checkpoints.close()
    shutil.rmtree(tmp_path / "3")
    shutil.copytree(tmp_path / "1", tmp_path / "3")
    opened = Checkpoints(tmp_path, keep=3)
    assert opened.restore(lambda _: abstract(states[1])).step == 2
    opened.close()

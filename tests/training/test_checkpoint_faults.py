"""Damaged files, full disks, killed and several processes: never silently another state."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.base.errors import StorageError, UserError
from gad_jax.training import sums
from gad_jax.training.checkpoint import Checkpoints
from tests.training.checkpoint_states import (
    abstract,
    flip_array,
    host,
    make_mesh,
    make_params,
    make_state,
)


@pytest.fixture
def mesh() -> Mesh:
    return make_mesh()


def mutate(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "delete":
        path.unlink()
    else:
        content[len(content) * int(how[-1]) // 4] ^= 0x10
        path.write_bytes(content)


def differs(damaged: Path, original: Path) -> bool:
    """Returns whether a file has changed; without the list of sums, the arrays' digests count."""
    if not damaged.exists():
        return not original.as_posix().endswith(sums.NAME)
    return damaged.read_bytes() != original.read_bytes()


MUTATIONS = ("truncate", "empty", "delete", "flip at 1", "flip at 3")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_damage_is_silent(tmp_path: Path, mesh: Mesh) -> None:
    states = {
        step: {"key": jax.random.key(step), "params": make_params(mesh, step, 512)}
        for step in (1, 2)
    }
    numbers = np.arange(300, dtype=np.uint16)
    original = tmp_path / "original"
    checkpoints = Checkpoints(original, keep=2)
    for step, state in states.items():
        checkpoints.save(step, state, {"step": step}, host={"numbers": numbers + step})
    checkpoints.close()
    want = {step: host(state) for step, state in states.items()}
    files = [f.relative_to(original) for f in (original / "2").rglob("*") if f.is_file()]
    outcomes = {1: 0, 2: 0}
    for file in files:
        for how in MUTATIONS:
            damaged = tmp_path / "damaged"
            shutil.copytree(original, damaged)
            mutate(damaged / file, how)
            changed = differs(damaged / file, original / file)
            opened = Checkpoints(damaged)
            step, state, meta, arrays = opened.restore(lambda _: abstract(states[1]))
            assert host(state) == want[step], (file, how)
            assert meta == {"step": step}, (file, how)
            np.testing.assert_array_equal(arrays["numbers"], numbers + step)
            quarantined = [path.name for path in damaged.iterdir() if ".corrupt-" in path.name]
            assert len(quarantined) == (step == 1), (file, how)
            assert opened.steps() == ([1] if step == 1 else [1, 2])
            assert (step == 1) == changed, (file, how)
            outcomes[step] += 1
            opened.close()
            shutil.rmtree(damaged)
    assert outcomes[1] > 10, "too few mutations did damage: the test proved nothing"


def test_goes_on_after_falling_back(
    tmp_path: Path, mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    warm, gad = make_state(mesh, 1, 1024, reference=False), make_state(mesh, 2, 1024)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, warm, {"stage": "warmup"}, 0.5)
    checkpoints.save(2, gad, {"stage": "gad"}, 0.6)
    flip_array(tmp_path / "2", gad.discriminator["layers"]["kernel"])
    (tmp_path / "2" / sums.NAME).unlink()  # as after a kill right after the commit
    stages = {"warmup": abstract(warm), "gad": abstract(gad)}
    with caplog.at_level(logging.WARNING):
        step, state, *_ = checkpoints.restore(lambda meta: stages[meta["stage"]])
    assert step == 1
    assert host(state) == host(warm)
    assert "1 arrays changed on disk, discriminator/layers/kernel" in caplog.text
    assert "checkpoint 2 was renamed to 2.corrupt-" in caplog.text
    assert checkpoints.best() == 1
    assert checkpoints.save(2, gad, {"stage": "gad"})
    assert checkpoints.restore(lambda meta: stages[meta["stage"]]).step == 2
    checkpoints.close()


def test_when_all_are_damaged_nothing_is_touched(tmp_path: Path, mesh: Mesh) -> None:
    checkpoints = Checkpoints(tmp_path)
    state = make_state(mesh, width=1024)
    for step in (1, 2):
        checkpoints.save(step, state, {})
    flip_array(tmp_path / "1", state.discriminator["layers"]["kernel"])
    (tmp_path / "2" / "meta" / "record.json").unlink()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=r"step 2: .*step 1: .*changed on disk"):
        checkpoints.restore(lambda _: abstract(state))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    with pytest.raises(StorageError, match="record of checkpoint"):
        checkpoints.read_meta(2)
    with pytest.raises(UserError, match="no checkpoint of step 3; it has"):
        checkpoints.restore(lambda _: None, step=3)
    checkpoints.close()


FAILED_WRITE = """
import resource, sys
from tests.training.checkpoint_states import make_mesh, make_state
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.base.errors import StorageError
from gad_jax.base.exits import run_guarded
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
def main():
    state = make_state(make_mesh(), width=4096)
    checkpoints = Checkpoints(sys.argv[1], background=True, keep=9)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    limit(64 * 1024)
    checkpoints.save(2, state, {}, 0.5)
    try:
        checkpoints.wait()
    except StorageError as error:
        print(error, flush=True)
    limit(resource.RLIM_INFINITY)
    print(checkpoints.save(3, state, {}), checkpoints.best(), flush=True)
    checkpoints.wait()
    limit(64 * 1024)
    checkpoints.save(4, state, {})
    checkpoints.save(5, state, {})
    return 0
sys.exit(run_guarded(main))
"""


def start_child(code: str, directory: Path, stderr: int | None = None) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def test_a_failed_write_is_reported_and_the_steps_before_stay(tmp_path: Path, mesh: Mesh) -> None:
    child = start_child(FAILED_WRITE, tmp_path, subprocess.PIPE)
    out, err = child.communicate()
    assert child.returncode == 12
    first, second = out.splitlines()
    assert first.startswith(f"checkpoint {tmp_path}/2 could not be written (")
    assert first.endswith("GB are free; complete checkpoints: [1]")
    assert second == "True None"
    # Threads of TensorStore may still write to stderr after our sentence.
    sentence = f"checkpoint {tmp_path}/4 could not be written ("
    ours = [line for line in err.splitlines() if line.startswith(sentence)]
    assert [line.endswith("complete checkpoints: [1, 3]") for line in ours] == [True]
    checkpoints = Checkpoints(tmp_path)
    state = make_state(mesh, width=4096)
    step, restored, _, _ = checkpoints.restore(lambda _: abstract(state))
    assert (step, host(restored)) == (3, host(state))
    checkpoints.close()


KILLED = """
import sys
from tests.training.checkpoint_states import make_mesh, make_state
from gad_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2, background=True)
mesh = make_mesh()
states = {parity: make_state(mesh, parity, 16384) for parity in (0, 1)}
step = max(checkpoints.steps(), default=0)
while True:
    step += 1
    checkpoints.save(step, states[step % 2], {"step": step})
    print(step, flush=True)  # the step before is complete, this one is being written
"""


def test_kill_during_saves_leaves_a_whole_checkpoint(tmp_path: Path, mesh: Mesh) -> None:
    want = {parity: make_state(mesh, parity, 16384) for parity in (0, 1)}
    unfinished, last = 0, 0
    for attempt in range(10):
        if unfinished and attempt >= 3:
            break
        child = start_child(KILLED, tmp_path)
        assert child.stdout is not None
        while int(child.stdout.readline()) < last + 2:
            pass
        time.sleep(0.03 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        unfinished += any("tmp" in path.name for path in tmp_path.iterdir())
        reader = Checkpoints(tmp_path, read_only=True)
        step, state, meta, _ = reader.restore(lambda _: abstract(want[0]))
        reader.close()
        assert step == meta["step"] > last
        assert host(state) == host(want[step % 2])
        last = step
    assert unfinished, "no kill hit a save: the test proved nothing"


TWO_PROCESSES = """
import sys
import jax, numpy as np
directory, port, process, phase = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from gad_jax.training.checkpoint import Checkpoints
mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2)
sharding = NamedSharding(mesh, P("fsdp", "tensor"))
def make(step):
    host = np.arange(512 * 64, dtype=np.float32).reshape(512, 64) + step
    return {"kernel": jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])}
with jax.set_mesh(mesh):
    checkpoints = Checkpoints(directory, background=True)
    if phase == "restore":
        target = {"kernel": jax.ShapeDtypeStruct((512, 64), np.float32, sharding=sharding)}
        step, state, meta, _ = checkpoints.restore(lambda meta: target)
        same = jax.jit(lambda a, b: (a == b).all())(state["kernel"], make(1)["kernel"])
        assert step == meta["step"] == 1 and bool(same) and checkpoints.steps() == [1]
    for step in {"save": (1, 2), "restore": (3,)}[phase]:
        checkpoints.save(step, make(step), {"step": step}, float(step))
    checkpoints.close()
jax.distributed.shutdown()
"""


def run_two_processes(directory: Path, phase: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("XLA_FLAGS", None)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(directory), str(port), str(process), phase],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for process in range(2)
    ]
    errors = [child.communicate(timeout=600)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors


def test_two_processes_agree_and_one_goes_on(tmp_path: Path) -> None:
    def make(step: int, mesh: Mesh) -> dict[str, jax.Array]:
        host = np.arange(512 * 64, dtype=np.float32).reshape(512, 64) + step
        return {"kernel": jax.device_put(host, NamedSharding(mesh, P("fsdp", "tensor")))}

    run_two_processes(tmp_path, "save")
    flip_array(tmp_path / "2", make(2, make_mesh(2, 2))["kernel"])
    run_two_processes(tmp_path, "restore")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [1, 3]
    assert sum(".corrupt-" in path.name for path in tmp_path.iterdir()) == 1
    want = make(3, make_mesh())
    assert host(checkpoints.restore(lambda _: abstract(want)).state) == host(want)
    checkpoints.close()

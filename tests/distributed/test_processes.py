"""How a process finds out what it is part of. Several real ones: tests/faults/test_processes.py."""

from pathlib import Path

import jax
import pytest

from gad_jax.base.errors import UserError
from gad_jax.distributed import processes

ADDRESS, COUNT, INDEX = processes.TRIPLE


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in processes.TRIPLE:
        monkeypatch.delenv(name, raising=False)


def test_one_process_agrees_with_itself(tmp_path: Path) -> None:
    assert processes.is_first()
    assert processes.any_of(True, False) == [True, False]
    assert processes.all_of(True)
    assert not processes.all_of(False)
    assert processes.from_first(lambda: "text") == "text"
    assert processes.together(lambda: 7) == 7
    processes.require_same("settings", "a")
    processes.require_shared(tmp_path)
    with pytest.raises(UserError, match=r"does not see .*nothing of process 0; put --run_dir"):
        processes.require_shared(tmp_path / "nothing", wait_seconds=0.0)
    assert processes.lost_peer(ValueError("UNKNOWN: Gloo AllGather failed: closed")) is None


def test_a_process_that_ended_during_a_save_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    late = TimeoutError("Timed out while waiting for async_write_complete barrier.")
    assert processes.lost_peer(late) is None  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert "lost another one, whose output says why (Timed out" in (processes.lost_peer(late) or "")
    assert processes.lost_peer(ValueError("UNKNOWN: Gloo AllGather failed: closed"))
    for ours in (TimeoutError("disk"), OSError("No space left"), UserError("UNKNOWN: barrier")):
        assert processes.lost_peer(ours) is None


def test_without_a_cluster_nothing_is_joined() -> None:
    assert processes._manual() == (None, None, None)
    assert processes._detection({}) is None
    assert processes._local_devices({}) is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("h:1", "2", None), "JAX_PROCESS_ID is not set, but others"),
        ((None, "2", "0"), "JAX_COORDINATOR_ADDRESS is not set, but others"),
        (("h:1", "two", "0"), "must be whole numbers"),
        (("h:1", "2", "2"), "JAX_PROCESS_ID=2 must be less than JAX_NUM_PROCESSES=2"),
        (("h", "2", "1"), "JAX_COORDINATOR_ADDRESS=h must be HOST:PORT"),
    ],
)
def test_an_incomplete_triple_is_refused(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str | None, ...], sentence: str
) -> None:
    for name, value in zip(processes.TRIPLE, values, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=sentence):
        processes._manual()


def test_a_complete_triple_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(processes.TRIPLE, ("[::1]:1234", "16", "3"), strict=True):
        monkeypatch.setenv(name, value)
    assert processes._manual() == ("[::1]:1234", 16, 3)
    assert processes._detection({COUNT: "16"}) == "deactivate"


def test_a_second_run_in_a_process_is_alone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []

    def no_cluster(*_: object, **__: object) -> None:
        calls.append(None)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    monkeypatch.setattr(processes, "_alone", False)
    for _ in range(2):
        processes.start(100, 300)
    assert len(calls) == 1


def test_a_process_that_has_used_jax_joins_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise RuntimeError("initialize() must be called before any JAX calls that might …")

    monkeypatch.setattr(jax.distributed, "initialize", too_late)
    monkeypatch.setattr(processes, "_alone", False)
    with pytest.raises(UserError, match=r"^this process has used jax before the run began"):
        processes.start(100, 300)


def test_a_pod_that_belongs_to_no_job_is_one_process() -> None:
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert processes._detection(pod) == "deactivate"
    assert processes._detection(pod | {"JOB_COMPLETION_INDEX": "0"}) is None


@pytest.mark.parametrize(
    ("slurm", "devices"),
    [
        # srun --ntasks-per-node=1: the task has the whole node
        ({"SLURM_NTASKS": "2", "SLURM_GPUS_ON_NODE": "8"}, list(range(8))),
        # srun --ntasks-per-node=8: jax takes the device of the task's number
        ({"SLURM_NTASKS": "16", "SLURM_GPUS_ON_NODE": "8"}, None),
        # … and --gpus-per-task=1: the task sees one, which is number 0
        ({"SLURM_NTASKS": "16", "CUDA_VISIBLE_DEVICES": "0"}, [0]),
        # CPU nodes
        ({"SLURM_NTASKS": "2"}, None),
    ],
)
def test_the_gpus_of_a_slurm_task(slurm: dict[str, str], devices: list[int] | None) -> None:
    step = {"SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2"}
    assert processes._local_devices(step | slurm) == devices
    assert processes._local_devices(step | slurm | {"JAX_LOCAL_DEVICE_IDS": "1"}) is None

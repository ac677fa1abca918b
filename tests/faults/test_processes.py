"""The train command in two real processes on this machine: the same run on any topology."""

import json
import shutil
import signal
from pathlib import Path

import jax
import pytest

from gad_jax.base.exits import StopRequest
from gad_jax.distributed.mesh import make_mesh
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import setup
from tests.faults.job import Job
from tests.training.runs import REPLAY

FLAGS = (
    "--config=tiny",
    "--stage=gad",
    "--gad.steps=2",
    "--data.heldout=",
    "--checkpoint.every=1",
    "--checkpoint.keep=9",
    *REPLAY,
)
COMPARED = ("generator/", "discriminator/", "reward/", "entropy", "response/", "kl/", "replay/")
# float32 sums in another order: measured 2e-6 on quantities near 1
TOLERANCE = {"rel": 2e-5, "abs": 2e-5}


def in_this_process(run_dir: Path, devices: int, *mesh: int) -> None:
    """Runs the same settings in this process, on some of its devices."""
    flags = [*FLAGS, f"--run_dir={run_dir}", "--export=false"]
    config = options.read(Config, flags, program="test", description="")
    grid = make_mesh(*mesh, devices=jax.devices()[:devices])
    with jax.set_mesh(grid):
        trainer = setup.build(config, grid)
        assert trainer.run(StopRequest())
        trainer.close()


def rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    first, second = rows(one), rows(other)
    assert [row["step"] for row in first] == [row["step"] for row in second] == [1, 2]
    for a, b in zip(first, second, strict=True):
        compared = [name for name in a if name.startswith(COMPARED)]
        assert len(compared) > 12
        for name in compared:
            assert a[name] == pytest.approx(b[name], **TOLERANCE), (a["step"], name)


def without_last_step(run_dir: Path, copy: Path) -> Path:
    """Returns a copy of a finished run as it was after step 1."""
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "checkpoints" / "2")
    shutil.rmtree(copy / "export", ignore_errors=True)
    return copy


@pytest.fixture(scope="module")
def two_by_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two processes with four devices each, tensor-parallel by two."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    job = Job(run_dir, *FLAGS, "--mesh.tensor=2", processes=2, devices=4)
    assert job.wait() == [0, 0], job.printed()
    assert rows(run_dir)[1]["replay/share"] == 0.5
    # The first alone prints.
    assert job.printed(0).count("step 2/2  gad") == 1
    assert "step 2/2" not in job.printed(1)
    return run_dir


def test_two_processes_train_as_one(two_by_four: Path, tmp_path: Path) -> None:
    in_this_process(tmp_path / "eight", 8, 1, 4, 2)
    assert_same_run(two_by_four, tmp_path / "eight")


@pytest.mark.slow
def test_two_processes_train_as_one_device(two_by_four: Path, tmp_path: Path) -> None:
    in_this_process(tmp_path / "one", 1, 1, 1, 1)
    assert_same_run(two_by_four, tmp_path / "one")


def test_one_process_resumes_where_two_stopped(two_by_four: Path, tmp_path: Path) -> None:
    copy = without_last_step(two_by_four, tmp_path / "four")
    in_this_process(copy, 4, 2, 1, 2)
    assert_same_run(two_by_four, copy)


def test_two_processes_export_what_one_reads(two_by_four: Path) -> None:
    from gad_jax.models import weights

    _, params = weights.load(two_by_four / "export" / "student")
    assert params["embedding"].shape[0] == 512


@pytest.mark.slow
def test_two_processes_resume_on_another_mesh(two_by_four: Path, tmp_path: Path) -> None:
    copy = without_last_step(two_by_four, tmp_path / "other")
    job = Job(copy, *FLAGS, "--mesh.replica=2", "--mesh.fsdp=2", processes=2, devices=2)
    assert job.wait() == [0, 0], job.printed()
    assert_same_run(two_by_four, copy)
    copy = without_last_step(two_by_four, tmp_path / "eight")
    assert Job(copy, *FLAGS, devices=8).wait() == [0]
    assert_same_run(two_by_four, copy)


@pytest.mark.slow
def test_a_killed_run_with_adapters_on_a_quantised_base_ends_bit_for_bit(tmp_path: Path) -> None:
    base = ("--lora.rank=4", "--lora.base_dtype=nf4", "--optimizer.moments=float8")
    flags = ("--config=tiny", "--stage=seqkd", "--seqkd.steps=3", *FLAGS[3:6], *base)

    def job(name: str) -> Job:
        return Job(tmp_path / name, *flags, "--mesh.tensor=2", processes=2, kill={})

    assert job("whole").wait() == [0, 0]
    killed = job("killed")
    killed.wait_for(r"step 1/3")
    for process in range(2):
        killed.signal(signal.SIGKILL, process)
    assert killed.wait() == [-signal.SIGKILL] * 2
    assert not (tmp_path / "killed" / "checkpoints" / "3").exists()
    again = job("killed")
    assert again.wait() == [0, 0], again.printed()
    records = [
        json.loads((tmp_path / name / "checkpoints" / "3" / "meta" / "record.json").read_text())
        for name in ("whole", "killed")
    ]
    assert records[0]["digests"] == records[1]["digests"]
    assert any("nu_scale" in name for name in records[0]["digests"])


def test_what_two_processes_do_not_share_is_refused(tmp_path: Path) -> None:
    """Both processes end with the sentence of a start-up mistake."""
    (tmp_path / "run").mkdir()
    job = Job(tmp_path / "run", "--config=tiny", "--student.path=./nowhere", processes=2)
    assert job.wait() == [2, 2], job.printed()
    for process in range(2):
        assert "'./nowhere' is not a directory here" in job.printed(process).splitlines()[-1]


def test_a_missing_peer_is_not_waited_for(tmp_path: Path) -> None:
    job = Job(
        tmp_path / "run",
        "--config=tiny",
        "--limits.join_seconds=3",
        environment={
            "JAX_COORDINATOR_ADDRESS": "127.0.0.1:9",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": "1",
        },
    )
    [code] = job.wait(600)
    assert code != 0
    assert "process 1 of 2 joins at 127.0.0.1:9; it waits 3 s for the others" in job.printed()
    assert "DEADLINE_EXCEEDED" in job.printed()

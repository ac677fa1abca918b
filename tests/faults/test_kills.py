"""kill -9 at named points and at random moments: the finished run equals an undisturbed one."""

import signal
from pathlib import Path

import pytest

from tests.faults import harness
from tests.faults.job import Job

POINTS = (
    r"os.rename .*config.yaml",
    r"os.rename evaluations/.before",
    r"os.rename checkpoints/1.orbax-checkpoint-tmp$",
    r"open checkpoints/2.orbax-checkpoint-tmp/.*record.json",
    r"os.rename checkpoints/3.orbax-checkpoint-tmp/state",
    r"os.(remove|rmdir) checkpoints/\d+(/|$)",
    r"open samples/",
    r"os.rename evaluations/.after-gad",
    r"open export/.student.partial/config.json",
    r"os.rename export/.student.partial$",
)


@pytest.mark.slow
def test_kills_at_named_points(tmp_path: Path) -> None:
    assert Job(tmp_path / "reference", *harness.FLAGS).wait() == [0]
    run_dir = tmp_path / "run"
    for point in POINTS:
        job = Job(run_dir, *harness.FLAGS, kill={0: f"at:{point}"})
        assert job.wait() == [-signal.SIGKILL], (point, job.printed())
    assert Job(run_dir, *harness.FLAGS, kill={0: "torn"}).wait() == [0]  # no row is left to tear
    assert harness.result(run_dir) == harness.result(tmp_path / "reference")
    assert not harness.debris(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_storm_of_kills(tmp_path: Path, processes: int) -> None:
    outcome = harness.storm(tmp_path, 10, processes, seed=1)
    assert outcome.kills == 10
    assert outcome.longest_wait < 90  # joining waits for 60

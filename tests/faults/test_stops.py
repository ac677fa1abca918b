"""How and when the processes of a run end after a signal, a crash or a hang."""

import json
import re
import signal
import time
from pathlib import Path

import pytest

from tests.faults.job import Job
from tests.training.runs import EIGHT_ROWS

LONG = (
    "--config=tiny",
    "--stage=gad",
    "--gad.steps=5000",
    f"--data.train={EIGHT_ROWS}",  # of one shape: no later step compiles
    "--data.heldout=",
    "--checkpoint.every=5",
    "--limits.heartbeat_seconds=10",
)
LOST = {14, -signal.SIGABRT}
"""Exit codes of a process that lost its peer: it reports that and leaves, or jax aborts it."""


def saved(run_dir: Path) -> list[int]:
    return sorted(int(p.name) for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())


def logged(run_dir: Path) -> list[int]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def assert_lost(job: Job, process: int) -> None:
    printed = job.printed(process)
    signs = r"lost another one, whose output says why|another task died"
    assert re.search(signs, printed), printed


def test_a_signal_to_one_process_stops_both_and_a_lost_one_ends_the_other(tmp_path: Path) -> None:
    # With `kill`, both processes keep what they compile for the second start.
    job = Job(tmp_path / "run", *LONG, processes=2, kill={})
    job.wait_for(r"step 2/5000")
    job.signal(signal.SIGTERM, 1)
    assert job.wait(600) == [0, 0]
    [stopped] = re.findall(r"stopped after step (\d+) of 5000, which is saved", job.printed(0))
    assert saved(tmp_path / "run")[-1] == int(stopped)
    assert logged(tmp_path / "run") == list(range(1, int(stopped) + 1))

    job = Job(tmp_path / "run", *LONG, processes=2, kill={})
    job.wait_for(rf"resuming after step {stopped} of 5000(?s:.*)step \d+/5000")
    job.signal(signal.SIGKILL, 1)
    killed = time.monotonic()
    codes = job.wait(600)
    assert codes[0] in LOST, job.printed()
    assert codes[1] == -signal.SIGKILL
    assert time.monotonic() - killed < 200  # a heartbeat is 10 s
    assert_lost(job, 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", [[0], [0, 1]])
def test_signals_to_the_first_or_to_all(tmp_path: Path, number: int, to: list[int]) -> None:
    job = Job(tmp_path / "run", *LONG, processes=2)
    job.wait_for(r"step 3/5000")
    for process in to:
        job.signal(number, process)
    assert job.wait(600) == [0, 0]
    assert "which is saved" in job.printed(0)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["rollout", "update", "save", "evaluation"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_in_any_phase_saves_and_leaves_every_step_logged(
    tmp_path: Path, phase: str, processes: int
) -> None:
    """Each run spends nearly all of its time in one phase, so that the signal arrives there."""
    flags = {
        "rollout": ("--rollout.max_new_tokens=256", "--data.max_prompt_tokens=256"),
        "update": ("--data.train=bundled", "--batch.prompts=16", "--rollout.samples=8"),
        "save": ("--checkpoint.every=1",),
        "evaluation": ("--evaluation.every=1", "--evaluation.batch_prompts=1"),
    }[phase]
    names = {flag.partition("=")[0] for flag in flags}
    long = [flag for flag in LONG if flag.partition("=")[0] not in names]
    if phase == "evaluation":
        long = [flag for flag in long if "heldout" not in flag]
    flags = (*long, "--evaluation.prompts=40", *flags)
    job = Job(tmp_path / "run", *flags, processes=processes)
    job.wait_for({"evaluation": "evaluating step 1"}.get(phase, "step 2/5000"))
    time.sleep(0.3)
    job.signal(signal.SIGTERM, processes - 1)
    signalled = time.monotonic()
    assert job.wait(600) == [0] * processes
    assert time.monotonic() - signalled < 300  # a step takes about a second
    last = saved(tmp_path / "run")[-1]
    assert logged(tmp_path / "run") == list(range(1, last + 1))


@pytest.mark.slow
@pytest.mark.parametrize("culprit", [0, 1])
def test_an_exception_in_one_process_ends_both(tmp_path: Path, culprit: int) -> None:
    """The exception is raised inside a save, while the other process waits."""
    job = Job(tmp_path / "run", *LONG, processes=2, kill={culprit: f"raise:{(25, 8)[culprit]}"})
    codes = job.wait(600)
    assert codes[culprit] in {12, 13}, job.printed()
    assert codes[1 - culprit] in LOST, job.printed()
    assert "planted in a test" in job.printed(culprit)
    assert_lost(job, 1 - culprit)


@pytest.mark.slow
def test_a_process_that_stalls_is_named_with_its_line(tmp_path: Path) -> None:
    flags = (*LONG, "--limits.step_minutes=1", "--limits.other_minutes=2")
    job = Job(tmp_path / "run", *flags, processes=2, kill={0: "stall:25"})
    assert all(code != 0 for code in job.wait(600))
    assert "Timeout (" in job.printed(0)
    assert "in act" in job.printed(0)


def test_a_signal_before_the_first_step_ends_at_once(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", *LONG)
    job.wait_for("# .*config.yaml")
    job.signal(signal.SIGTERM)
    assert job.wait(600) == [128 + signal.SIGTERM]
    assert "nothing was saved" in job.printed()

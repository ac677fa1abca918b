"""Runs config tiny for many steps; shows whether memory, open files and step time stay flat.

python -m tests.faults.soak --steps 2000
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gad_jax.base.jsonl import read_rows
from tests.faults.job import Job


def sample(pid: int) -> tuple[float, int, int]:
    """Returns a process's resident memory in MB, its open files and its threads."""
    status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))  # noqa: SIM115
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"])


def soak(work: Path, steps: int) -> list[tuple[int, float, int, int]]:
    """Runs the steps; returns (step, memory, files, threads), about once a second."""
    run_dir = work / "run"
    flags = ("--config=tiny", "--stage=gad", f"--gad.steps={steps}", "--checkpoint.every=50")
    job = Job(run_dir, *flags, "--evaluation.every=200", "--export=false")
    samples = []
    while job.processes[0].poll() is None:
        time.sleep(1)
        path = run_dir / "metrics.jsonl"
        done = path.read_bytes().count(b"\n") if path.exists() else 0
        try:
            samples.append((done, *sample(job.processes[0].pid)))
        except (OSError, KeyError):  # It has just ended.
            break
    assert job.wait() == [0], job.printed()
    return samples


def report(run_dir: Path, samples: list[tuple[int, float, int, int]], steps: int) -> None:
    """Prints each tenth of the run."""
    rows = read_rows(run_dir / "metrics.jsonl")
    print("steps          memory MB  files  threads  median s/step  compiles")
    for tenth in range(10):
        start, end = steps * tenth // 10, steps * (tenth + 1) // 10
        part = np.asarray([s[1:] for s in samples if start < s[0] <= end] or [[np.nan] * 3])
        seconds = np.median([row["seconds/step"] for row in rows[start:end]])
        compiles = sum(row["compiles"] for row in rows[start:end])
        memory, files, threads = part.max(axis=0)
        print(
            f"{start + 1:5}–{end:<6} {memory:11.0f} {files:6.0f} {threads:8.0f} "
            f"{seconds:14.3f} {compiles:9.0f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    work = Path(tempfile.mkdtemp(prefix="gad_jax-soak-"))
    report(work / "run", soak(work, steps), steps)
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())

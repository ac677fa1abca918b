"""Kills a tiny run again and again until it finishes, and compares it with an undisturbed run.

    python -m tests.faults.harness --kills 100 --processes 1

Each start is killed with SIGKILL: at a random moment, before a random file operation on the run
directory (entry.py), or in the middle of a line of metrics.jsonl. With several processes one is
killed, and the others must end by themselves. A run that has finished must equal the undisturbed
one: parameters, optimizers and random key (by checksum), the metrics of every step once,
evaluations, samples and export. It must leave no temporary files. Then the next run begins.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.faults.job import Job
from tests.training.runs import REPLAY

FLAGS = (
    "--config=tiny",
    "--warmup.steps=3",
    "--gad.steps=4",
    "--rollout.max_new_tokens=8",
    "--checkpoint.every=1",
    "--evaluation.every=2",
    "--evaluation.prompts=2",
    "--limits.heartbeat_seconds=10",
    *REPLAY,
    "--limits.join_seconds=60",  # for the peer of a process that was killed before it joined
)
VARYING = ("seconds/", "tokens_per_second/", "compiles", "host_share")
OPERATIONS = 250
"""About the number of file operations in an undisturbed run."""


@dataclasses.dataclass
class Outcome:
    """The counts of a storm of kills."""

    kills: int = 0
    runs: int = 0
    at_operations: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    inside_saves: int = 0
    longest_wait: float = 0.0


def result(run_dir: Path) -> dict[str, Any]:
    """Returns everything that interruptions must not change."""
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = sorted(int(p.name) for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())
    records = [run_dir / "checkpoints" / str(step) / "meta" / "record.json" for step in steps]
    files = [
        path
        for part in ("evaluations", "export", "samples")
        for path in sorted((run_dir / part).rglob("*"))
        if path.is_file()
    ]
    return {
        "metrics": [{k: v for k, v in r.items() if not k.startswith(VARYING)} for r in metrics],
        "checkpoints": [
            {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}
            for path in records
        ],
        "files": {
            str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        },
    }


def debris(run_dir: Path) -> list[str]:
    """Returns the files that only a killed process leaves behind."""
    marks = re.compile(r"partial|before$|orbax-checkpoint-tmp|corrupt|probe|lock\.json")
    found = [str(path.relative_to(run_dir)) for path in run_dir.rglob("*")]
    return [name for name in found if marks.search(Path(name).name) and "before.json" not in name]


def storm(work: Path, kills: int, processes: int, seed: int, seconds: float = 0.0) -> Outcome:
    """Kills starts `kills` times; raises AssertionError when a finished run differs.

    `seconds` is the duration of an undisturbed start; 0 measures it.
    """
    rng = random.Random(seed)
    reference, begun = work / "reference", time.monotonic()
    _finish(Job(reference, *FLAGS, processes=processes, kill={}))
    expected = result(reference)
    begun = time.monotonic()
    seconds = seconds or _time_a_start(work / "timed", processes)
    outcome = Outcome()
    while outcome.kills < kills:
        run_dir = work / f"run-{outcome.runs}"
        while outcome.kills < kills and _start_and_kill(run_dir, rng, processes, seconds, outcome):
            print(f"{outcome.kills} kills, {outcome.runs} runs finished", flush=True)
        _finish(Job(run_dir, *FLAGS, processes=processes, kill={}))
        found = result(run_dir)
        for part, value in expected.items():
            assert found[part] == value, f"the {part} of {run_dir} and {reference} differ"
        assert not debris(run_dir), f"{run_dir}: left behind: {debris(run_dir)}"
        outcome.runs += 1
        shutil.rmtree(run_dir)
    print(f"{outcome.kills} kills in {time.monotonic() - begun:.0f} s")
    return outcome


def _time_a_start(run_dir: Path, processes: int) -> float:
    begun = time.monotonic()
    _finish(Job(run_dir, *FLAGS, processes=processes, kill={}))
    shutil.rmtree(run_dir)
    return time.monotonic() - begun


def _finish(job: Job) -> None:
    codes = job.wait(600)
    assert not any(codes), f"exit codes {codes}:\n{job.printed()}"


def _start_and_kill(
    run_dir: Path, rng: random.Random, processes: int, seconds: float, outcome: Outcome
) -> bool:
    """Starts the run and kills it; returns False when it finished first."""
    victim = rng.randrange(processes)
    point = rng.choice(["", "", str(rng.randint(1, OPERATIONS)), str(rng.randint(1, 60)), "torn"])
    if victim:  # writes less
        point = rng.choice(["", str(rng.randint(1, 40))])
    job = Job(run_dir, *FLAGS, processes=processes, kill={victim: point} if point else {})
    process = job.processes[victim]
    if point:
        code = process.wait(600)
    else:
        try:
            code = process.wait(rng.uniform(0, seconds))
        except Exception:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
    ended = time.monotonic()
    codes = job.wait(240)
    if code != -signal.SIGKILL:
        assert not any(codes), f"exit codes {codes}:\n{job.printed()}"
        return False
    if processes > 1 and not all(codes):
        done = (
            run_dir / "export" / "student"
        ).is_dir()  # the run was complete, only its exit was cut off
        assert done, f"a process finished without its peer: {codes}"
    outcome.kills += 1
    outcome.longest_wait = max(outcome.longest_wait, time.monotonic() - ended)
    saving = any(run_dir.glob("checkpoints/*orbax-checkpoint-tmp*"))
    outcome.inside_saves += saving
    named = re.findall(r"POINT \d+ (\S+) (.*)", job.printed(victim))
    what = "a row" if point == "torn" else _place(*named[-1]) if named else "a moment"
    outcome.at_operations[what] += 1
    return True


def _place(event: str, path: str) -> str:
    """Returns a file operation without its numbers: 'os.rename checkpoints/N.orbax…'."""
    path = re.sub(r"\d+(?=[./-]|$)", "N", path)
    return f"{event} {'/'.join(path.split('/')[:2])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="gad_jax-kills-"))
    outcome = storm(work, options.kills, options.processes, options.seed)
    print(
        f"{outcome.kills} kills on {options.processes} process(es), {outcome.inside_saves} of them "
        f"left an unfinished save; {outcome.runs} runs finished equal to the undisturbed one; "
        f"the other processes ended within {outcome.longest_wait:.1f} s"
    )
    for place, count in outcome.at_operations.most_common():
        print(f"{count:4} {place}")
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())

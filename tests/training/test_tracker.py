"""What a run writes, read back: rows, TensorBoard events, console lines."""

import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from gad_jax.base import verbosity
from gad_jax.base.jsonl import read_rows
from gad_jax.training.tracker import Tracker


def plain(width: int = 100) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def result(label: str, step: int, **metrics: float) -> Any:
    examples = [
        {"prompt": f"question {i}", "teacher": f"teacher {i}", "student": f"{label} {i}"}
        for i in range(3)
    ]
    named = {f"evaluation/{name}": value for name, value in metrics.items()}
    return SimpleNamespace(label=label, step=step, metrics=named, examples=examples)


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Callable[[], Tracker]]:
    """Makes trackers of one run directory, and closes them."""
    made = []

    def make() -> Tracker:
        made.append(Tracker(tmp_path, plain()))
        return made[-1]

    yield make
    for one in made:
        one.close()


def read_events(directory: Path) -> list[Event]:
    """Returns the events of a directory in order, less those that a restart declares void."""
    events: list[Event] = []
    for path in sorted(directory.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += 12 + length + 4
            if event.HasField("session_log"):
                events = [e for e in events if e.step < event.step]
            else:
                events.append(event)
    return events


def read_scalars(directory: Path) -> dict[tuple[str, int], float]:
    return {
        (value.tag, event.step): value.simple_value
        for event in read_events(directory)
        for value in event.summary.value
        if value.HasField("simple_value")
    }


def test_writes_one_valid_row_per_step(tmp_path: Path, tracker: Callable[[], Tracker]) -> None:
    writer = tracker()
    writer.start(0, 2)
    writer.log(1, "warmup", {"generator/loss": 0.1, "compiles": 3.0})
    writer.log(2, "gad", {"generator/loss": math.nan, "kl/reference": math.inf})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == '{"step": 1, "stage": "warmup", "generator/loss": 0.1, "compiles": 3.0}'
    second = {"step": 2, "stage": "gad", "generator/loss": None, "kl/reference": None}
    assert json.loads(lines[1], parse_constant=pytest.fail) == second
    assert read_rows(tmp_path / "metrics.jsonl")[1] == second


def test_rows_keep_every_bit(tmp_path: Path, tracker: Callable[[], Tracker]) -> None:
    values = {"a/b": 0.1 + 0.2, "a/c": 5e-324, "a/d": -1.7976931348623157e308}
    tracker().log(1, "gad", values)
    row = read_rows(tmp_path / "metrics.jsonl")[0]
    assert {name: row[name].hex() for name in values} == {k: v.hex() for k, v in values.items()}


def test_going_on_repeats_no_step(tmp_path: Path, tracker: Callable[[], Tracker]) -> None:
    first = tracker()
    first.start(0, 6)
    for step in range(1, 6):
        first.log(step, "gad", {"generator/loss": float(step)})
    first.close()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 6, "stage": "ga')
    second = tracker()
    second.start(3, 6)
    for step in range(4, 7):
        second.log(step, "gad", {"generator/loss": 10.0 * step})
    second.close()
    rows = read_rows(tmp_path / "metrics.jsonl")
    want = [1.0, 2.0, 3.0, 40.0, 50.0, 60.0]
    assert [(row["step"], row["generator/loss"]) for row in rows] == list(enumerate(want, 1))
    scalars = read_scalars(tmp_path / "tensorboard")
    assert scalars == {("generator/loss", step): value for step, value in enumerate(want, 1)}


def test_what_is_known_later_joins_the_last_row(
    tmp_path: Path, tracker: Callable[[], Tracker]
) -> None:
    writer = tracker()
    writer.start(0, 9)
    for step in (1, 2):
        writer.log(step, "gad", {"generator/loss": 0.5})
    writer.amend(2, {"evaluation/rouge_l": 0.25})
    writer.amend(2, {"evaluation/rouge_l": 0.25})
    writer.amend(1, {"evaluation/rouge_l": 1.0})  # not the last
    writer.log(3, "gad", {"generator/loss": math.nan})
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "stage": "gad", "generator/loss": 0.5},
        {"step": 2, "stage": "gad", "generator/loss": 0.5, "evaluation/rouge_l": 0.25},
        {"step": 3, "stage": "gad", "generator/loss": None},
    ]


KILLED = """
import os, signal, sys
from gad_jax.training.tracker import Tracker
tracker = Tracker(sys.argv[1])
tracker.start(0, 50)
for step in range(1, 51):
    tracker.log(step, "gad", {"generator/loss": step / 3})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 51))
    scalars = read_scalars(tmp_path / "tensorboard")
    assert len(scalars) == 50
    for row in rows:
        stored = scalars["generator/loss", row["step"]]
        assert stored == pytest.approx(row["generator/loss"], rel=1e-7)  # events hold float32
    assert len(done.stdout.splitlines()) == 50
    assert done.stdout.startswith("step 1/50  gad  G loss 0.3333")
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_imports_no_jax() -> None:
    code = "import sys, gad_jax.training.tracker; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_evaluations_are_shown_and_kept(tmp_path: Path) -> None:
    console = plain(120)
    writer = Tracker(tmp_path, console)
    writer.start(0, 4)
    before = result("before", 0, rouge_l=0.1, length=300.0, length_ratio=1.5)
    after = result("after gad", 4, rouge_l=0.3, length=210.0, length_ratio=1.05)
    with writer.busy("evaluating: before"):
        writer.evaluation(before, 2)
    writer.comparison([before, after], 1)
    writer.close()
    text = shown(console)
    assert text.startswith("evaluating: before\nbefore, step 0")
    assert text.count("ROUGE-L") == 2
    assert text.count("before 0") == 1  # at the end alone
    assert "after gad 0" in text
    samples = {path.name: path.read_text() for path in (tmp_path / "samples").iterdir()}
    assert set(samples) == {"000000-before.md", "000004-comparison.md"}
    assert samples["000004-comparison.md"].splitlines() == [
        *("**prompt**", "", "    question 0", ""),
        *("**teacher**", "", "    teacher 0", ""),
        *("**before**", "", "    before 0", ""),
        *("**after gad**", "", "    after gad 0"),
    ]
    assert read_scalars(tmp_path / "tensorboard")["evaluation/length", 0] == 300
    tags = [
        value.tag
        for event in read_events(tmp_path / "tensorboard")
        for value in event.summary.value
    ]
    assert "before/text_summary" in tags


def test_a_quiet_run_shows_warnings_and_the_result(tmp_path: Path) -> None:
    console = plain(120)
    verbosity.choose(["--quiet"])
    try:
        writer = Tracker(tmp_path, console)
        writer.start(0, 4)
        before = result("before", 0, rouge_l=0.1)
        with writer.busy("evaluating: before"):
            writer.evaluation(before, 2)
        writer.log(1, "gad", {"generator/loss": 1.0})
        writer.news("the best so far")
        writer.notice("alarm kl")
        writer.comparison([before], 1)
        writer.close()
    finally:
        verbosity.choose([])
    lines = [line.strip() for line in shown(console).splitlines()]
    assert lines[:2] == ["alarm kl", "held-out prompts"]
    assert len(lines) == 7
    assert len(list((tmp_path / "samples").iterdir())) == 2


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    writer = Tracker(run_dir, plain(), enabled=False)
    writer.start(0, 2)
    writer.log(1, "gad", {"generator/loss": 1.0})
    writer.text(1, "name", "text")
    writer.table("title", {"row": {"column": 1.0}})
    writer.evaluation(result("before", 0), 1)
    with writer.busy("busy"):
        pass
    writer.close()
    assert not run_dir.exists()

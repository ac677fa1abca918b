"""What trackers get, when, and what becomes of a run whose tracker fails: with one that records."""

import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gad_jax.base.jsonl import read_rows
from gad_jax.training.tracker import Tracker
from gad_jax.training.trackers import sending
from gad_jax.training.trackers.sending import Trackers
from gad_jax.training.trackers.service import About


class Recorder:
    """A tracker that keeps what it gets; `failing` is what its calls raise, `gate` holds them."""

    def __init__(self) -> None:
        self.opened: list[About] = []
        self.got: list[Any] = []
        self.failing: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def open(self, about: About) -> Any:
        self._fail()
        self.opened.append(about)
        self.id, self.link = about.id or "run-1", "http://here/run-1"
        return self

    def scalars(self, step: int, metrics: Any) -> None:
        self._fail()
        self.got.append((step, dict(metrics)))

    def text(self, step: int, name: str, markdown: str) -> None:
        self._fail()
        self.got.append((step, name, markdown))

    def close(self, outcome: str) -> None:
        self._fail()
        self.got.append(outcome)

    def _fail(self) -> None:
        self.gate.wait(60)
        if self.failing:
            raise self.failing


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    found = Recorder()
    yield found
    found.gate.set()  # threads of a test that failed end


@pytest.fixture
def begin(tmp_path: Path, recorder: Recorder) -> Callable[..., Tracker]:
    """Begins a process of the run after a step; its console is `begin.console`."""

    def start(step: int) -> Tracker:
        about = About("project", "mine", ("tag",), {"seed": 1}, tmp_path)
        console = Console(file=io.StringIO(), width=300)
        writer = Tracker(tmp_path, console, trackers=Trackers({"fake": recorder.open}, about))
        start.console = console.file  # type: ignore[attr-defined]
        writer.start(step, 6)
        return writer

    return start


def test_all_that_is_logged_arrives_in_order(
    begin: Callable[..., Tracker], recorder: Recorder, tmp_path: Path
) -> None:
    writer = begin(0)
    assert "fake: http://here/run-1" in begin.console.getvalue()  # type: ignore[attr-defined]
    writer.log(1, "gad", {"a/b": 0.5, "a/c": math.nan, "a/d": math.inf, "compiles": 2})
    writer.text(1, "step 1", "**x**")
    writer.amend(1, {"evaluation/rouge_l": 0.25})
    writer.close()
    assert recorder.got == [
        (1, {"a/b": 0.5, "compiles": 2.0}),
        (1, "step 1", "**x**"),
        (1, {"evaluation/rouge_l": 0.25}),
        "finished",
    ]
    (about,) = recorder.opened
    assert (about.id, about.settings) == ("", {"seed": 1})
    stored = json.loads((tmp_path / "trackers.json").read_text())["fake"]
    assert (stored["id"], stored["link"], stored["step"]) == ("run-1", "http://here/run-1", 1)


def test_a_resumed_run_continues_there_and_sends_nothing_twice(
    begin: Callable[..., Tracker], recorder: Recorder
) -> None:
    for start, steps, outcome in ((0, (1, 2, 3), "stopped"), (2, (3, 4), "finished")):
        writer = begin(start)
        for step in steps:
            writer.log(step, "gad", {"a/b": step / 2})
        writer.text(3, "step 3", "text")
        writer.close(outcome)  # type: ignore[arg-type]
    assert [about.id for about in recorder.opened] == ["", "run-1"]
    rows = [(step, {"a/b": step / 2}) for step in (1, 2, 3, 4)]
    assert recorder.got == [*rows[:3], (3, "step 3", "text"), "stopped", rows[3], "finished"]


def test_a_tracker_that_fails_warns_once_and_gets_all_of_it_later(
    begin: Callable[..., Tracker],
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_TOKEN", "open-sesame")
    recorder.failing = ConnectionError("no server at http://open-sesame@here\nTraceback")
    writer = begin(0)
    for step in (1, 2):
        writer.log(step, "gad", {"a/b": float(step)})
    writer.close("failed")
    said = begin.console.getvalue()  # type: ignore[attr-defined]
    sentence = "fake: does not take what it is sent (ConnectionError: no server at http://[redacted"
    assert said.count("fake:") == said.count(sentence) == 1, said
    assert recorder.got == []
    assert [row["a/b"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1.0, 2.0]
    recorder.failing = None
    writer = begin(2)  # another process: the rows come from metrics.jsonl
    writer.log(3, "gad", {"a/b": 3.0})
    writer.close()
    assert recorder.got == [*((step, {"a/b": float(step)}) for step in (1, 2, 3)), "finished"]


def test_a_tracker_that_comes_back_gets_what_waited(
    begin: Callable[..., Tracker], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "FIRST_WAIT", 0.05)
    writer = begin(0)
    writer.log(1, "gad", {"a/b": 1.0})
    recorder.gate.clear()
    recorder.failing = OSError("gone")
    writer.log(2, "gad", {"a/b": 2.0})
    recorder.gate.set()
    for _ in range(3000):
        if "gone" in begin.console.getvalue():  # type: ignore[attr-defined]
            break
        writer.amend(1, {})
        threading.Event().wait(0.02)
        writer._say()
    recorder.failing = None
    writer.log(3, "gad", {"a/b": 3.0})
    writer.close()
    rows = [entry[0] for entry in recorder.got if entry[1] and isinstance(entry, tuple)]
    assert rows == [1, 2, 3]


def test_a_tracker_that_hangs_holds_nothing_up(
    begin: Callable[..., Tracker], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "START_SECONDS", 0.05)
    monkeypatch.setattr(sending, "CLOSE_SECONDS", 0.05)
    recorder.gate.clear()
    writer = begin(0)
    writer.log(1, "gad", {"a/b": 1.0})
    writer.close()
    said = begin.console.getvalue()  # type: ignore[attr-defined]
    assert "fake: has not got all of the run yet; the same command sends what is missing" in said


def test_a_tracker_that_is_gone_fills_no_memory(
    begin: Callable[..., Tracker], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MOST_WAITING", 2)
    recorder.failing = OSError("gone")
    writer = begin(0)
    for step in (1, 2, 3, 4):
        writer.log(step, "gad", {"a/b": 1.0})
    recorder.failing = None
    writer.log(5, "gad", {"a/b": 1.0})
    writer.close("stopped")
    assert [entry[0] for entry in recorder.got[:-1]] == [1, 2]  # no gap that would not be filled
    begin(5).close()
    assert [entry[0] for entry in recorder.got if entry[0] in range(9)] == [1, 2, 3, 4, 5]


def test_a_damaged_record_begins_a_new_run(tmp_path: Path) -> None:
    for text in ("", "[]", '{"fake": {"colour": 1}}', '{"fake": 3}'):
        (tmp_path / sending.FILE).write_text(text)
        assert sending.read(tmp_path) == {}

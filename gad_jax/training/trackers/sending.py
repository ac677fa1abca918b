"""Sends what a run measures to trackers, each from a thread of its own.

A tracker that is slow, fails or hangs neither holds up nor ends the run: what it has not got waits,
and is sent again later. `trackers.json` in the run directory says what each tracker calls the run
and what it has got. So a run that resumes continues there, and sends nothing twice.
"""

import contextlib
import dataclasses
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gad_jax.base import files
from gad_jax.base.errors import first_line
from gad_jax.base.redaction import redact
from gad_jax.training.trackers.service import About, Outcome, Service

FILE = "trackers.json"
START_SECONDS = 10.0
"""The run waits so long for a tracker to open, so that its link stands above the first step."""
CLOSE_SECONDS = 30.0
FIRST_WAIT, LONGEST_WAIT = 15.0, 600.0
"""Seconds until a tracker that failed is tried again; the wait doubles."""
MOST_WAITING = 20_000
"""More than this is not kept for a tracker that is gone: metrics.jsonl has it."""

Open = Callable[[About], Service]


@dataclasses.dataclass
class Record:
    """What a tracker has got: the rows of the steps up to `step`, and `others` by name."""

    id: str = ""
    link: str = ""
    step: int = 0
    others: list[str] = dataclasses.field(default_factory=list)

    def has(self, key: int | str) -> bool:
        """Returns whether the tracker has got the row of a step, or something by its name."""
        return key <= self.step if isinstance(key, int) else key in self.others

    def add(self, key: int | str) -> None:
        """Notes that the tracker has got it."""
        if isinstance(key, int):
            self.step = key
        else:
            self.others.append(key)


def read(run_dir: Path) -> dict[str, Record]:
    """Returns the records of a run by tracker; none where the file is missing or damaged."""
    try:
        stored = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
        return {name: Record(**fields) for name, fields in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


class Trackers:
    """The trackers of one run, by name. `said` returns what they have to say to the user."""

    def __init__(self, openers: Mapping[str, Open], about: About) -> None:
        self._path = about.directory / FILE
        self._records = read(about.directory)
        self._lock = threading.Lock()
        self._said: deque[str] = deque()
        self._senders = []
        for name, opener in openers.items():
            record = self._records.setdefault(name, Record())
            self._senders.append(_Sender(name, opener, about, record, self._save, self._said))

    def start(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Opens the trackers, and sends the rows of metrics.jsonl that one of them has not got."""
        for row in rows:
            numbers = {name: row[name] for name in row if name not in ("step", "stage")}
            self.row(row["step"], numbers)
        for sender in self._senders:
            sender.start()
        ends = time.monotonic() + START_SECONDS
        for sender in self._senders:
            sender.tried.wait(max(0.0, ends - time.monotonic()))

    def row(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Sends the metrics of a step."""
        self._put(step, _scalars(step, metrics))

    def later(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Sends metrics that are no row of a step: of before the first one, or known later."""
        self._put(f"{step} metrics", _scalars(step, metrics))

    def text(self, step: int, name: str, markdown: str) -> None:
        """Sends a text of a step."""
        self._put(f"{step} {name}", lambda service: service.text(step, name, markdown))

    def said(self) -> list[str]:
        """Returns the sentences since the last call: where the run is shown, what went wrong."""
        found = []
        with contextlib.suppress(IndexError):
            while True:
                found.append(self._said.popleft())
        return found

    def close(self, outcome: Outcome) -> None:
        """Sends what waits, for half a minute at most."""
        for sender in self._senders:
            sender.end(outcome)
        ends = time.monotonic() + CLOSE_SECONDS
        for sender in self._senders:
            sender.wait(max(0.0, ends - time.monotonic()))

    def _put(self, key: int | str, send: Callable[[Service], None]) -> None:
        for sender in self._senders:
            sender.put(key, send)

    def _save(self) -> None:
        with self._lock:
            content = {name: dataclasses.asdict(each) for name, each in self._records.items()}
            files.write_atomic(self._path, json.dumps(content, indent=1) + "\n")


class _Sender:
    """What waits for one tracker, and the thread that sends it."""

    def __init__(
        self,
        name: str,
        opener: Open,
        about: About,
        record: Record,
        save: Callable[[], None],
        said: deque[str],
    ) -> None:
        self._name, self._opener, self._about = name, opener, about
        self._record, self._save, self._said = record, save, said
        self._waiting: deque[tuple[int | str, Callable[[Service], None]]] = deque()
        self._changed = threading.Condition()
        self._outcome: Outcome | None = None
        self._service: Service | None = None
        self._pause = 0.0
        self._warned = self._full = False
        self.tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, key: int | str, send: Callable[[Service], None]) -> None:
        """Has the thread send something, unless the tracker has got it."""
        if self._record.has(key):
            return
        with self._changed:
            # Once a row is left out, so are all that follow: the next start sends them in order.
            self._full = self._full or (self._pause > 0 and len(self._waiting) >= MOST_WAITING)
            if not self._full:
                self._waiting.append((key, send))
                self._changed.notify()

    def end(self, outcome: Outcome) -> None:
        """Has the thread end once all is sent, or as soon as that fails."""
        with self._changed:
            self._outcome = self._outcome or outcome
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Waits for the end of the thread; says so where more time is needed."""
        if not self._thread.ident:
            return
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._warned:
            self._say("has not got all of the run yet; the same command sends what is missing")

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._outcome is None:
                    self._changed.wait_for(self._is_due, self._pause or None)
            ends = self._outcome
            try:
                self._send()
                if ends is not None and self._service is not None:
                    self._service.close(ends)
                self._pause = 0.0
            except (Exception, SystemExit) as error:  # whatever a package raises
                self._fail(error)
                ends = self._outcome  # which may have come meanwhile: it is not tried again then
            self.tried.set()
            if ends is not None:
                return

    def _is_due(self) -> bool:
        """Returns whether there is something to do now: after a failure, only the end is."""
        opens = self._service is None
        return self._outcome is not None or (not self._pause and bool(opens or self._waiting))

    def _send(self) -> None:
        if self._service is None:
            about = dataclasses.replace(self._about, id=self._record.id)
            self._service = self._opener(about)
            self._record.id, self._record.link = self._service.id, redact(self._service.link)
            self._save()
            self._say(self._service.link)
        waiting = len(self._waiting)
        try:
            while self._waiting:
                key, send = self._waiting[0]
                if not self._record.has(key):
                    send(self._service)
                    self._record.add(key)
                self._waiting.popleft()
        finally:
            if len(self._waiting) < waiting:
                self._save()

    def _fail(self, error: BaseException) -> None:
        self._pause = min(max(2 * self._pause, FIRST_WAIT), LONGEST_WAIT)
        if not self._warned:
            self._warned = True
            why = first_line(error, with_class=True)
            self._say(
                f"does not take what it is sent ({why}); the run continues, metrics.jsonl has all "
                "of it, and what is missing is sent later or by the same command"
            )

    def _say(self, words: str) -> None:
        self._said.append(redact(f"{self._name}: {words}"))


def _scalars(step: int, metrics: Mapping[str, float | None]) -> Callable[[Service], None]:
    finite = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    return lambda service: service.scalars(step, finite)

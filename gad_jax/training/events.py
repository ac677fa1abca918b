"""TensorBoard's files of a run: derived, and written anew from metrics.jsonl at every start."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PATTERN = "events.out.tfevents.*"

CHARTS = {
    "D accuracy, also on older answers": (
        "discriminator/accuracy",
        "discriminator/accuracy_replayed",
    ),
    "score margin": ("discriminator/margin",),
    "D's score minus the teacher's": ("reward/minus_teacher",),
    "terms of the reward": ("reward/.+/mean",),
    "spread of a prompt's rewards": ("reward/std",),
    "DPO accuracy": ("dpo/accuracy",),
    "share of older answers": ("replay/share",),
    "response length, × teacher": ("response/length_ratio",),
    "KL to the reference": ("kl/reference",),
    "entropy": ("entropy",),
    "repetition, and the teacher's": ("response/repetition", "response/teacher_repetition"),
    "script drift": ("response/script_drift",),
    "alarms, paused networks": (
        *("health/alarms", "health/discriminator_paused", "health/generator_paused"),
    ),
}
"""The charts under TensorBoard's Custom Scalars: how the game goes, in the report's order."""


class Events:
    """Writes every scalar and every text once, whatever interrupted the run before.

    Events are written by the calling thread: `tensorboardX.SummaryWriter` has one of its own, and
    waits for it for ever once the disk is full.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file: Any = None  # an EventsWriter, made when first needed
        self._written: set[tuple[str, int]] = set()

    def rebuild(self, rows: Sequence[Mapping[str, Any]], written_at: float) -> None:
        """Replaces the files of earlier starts by one with the scalars of these rows, the last of
        which was written at a time in seconds since 1970."""
        old = list(self.directory.glob(_PATTERN))
        self.close()
        self._written = set()
        if not rows and not old:
            return
        for path in old:
            path.unlink()
        times = [written_at]
        for row in reversed(rows[1:]):
            times.append(times[-1] - (row.get("seconds/step") or 0.0))
        for row, at in zip(rows, reversed(times), strict=False):
            names = [name for name in row if name not in ("step", "stage")]
            self._scalars(row["step"], {name: row[name] for name in names}, at)
        self._flush()

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step that are finite and that were not written yet."""
        self._scalars(step, metrics, time.time())
        self._flush()

    def text(self, step: int, name: str, markdown: str) -> None:
        """Writes a text, unless there is one of this name and step."""
        from tensorboardX import summary

        if (name, step) not in self._written:
            self._written.add((name, step))
            self._write(step, time.time(), summary=summary.text(name, markdown))
            self._flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _scalars(self, step: int, metrics: Mapping[str, float | None], at: float) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in metrics.items()
            if isinstance(value, int | float)
            and math.isfinite(value)
            and (name, step) not in self._written
        ]
        self._written |= {(value.tag, step) for value in values}
        if values:
            self._write(step, at, summary=Summary(value=values))

    def _write(self, step: int, at: float, **content: Any) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]

        if self._file is None:
            from tensorboardX.event_file_writer import EventsWriter

            self.directory.mkdir(parents=True, exist_ok=True)
            # Names have seconds only, and a file of the same name would be overwritten.
            suffix = f".{os.getpid()}.{time.time_ns() % 10**9}"
            self._file = EventsWriter(str(self.directory / "events"), suffix)
            # A TensorBoard that is open forgets what it has read of the earlier files.
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=at, step=0, session_log=start))
            charts = {
                # Names are regular expressions there.
                title: ["Multiline", [f"^{name}$" for name in names]]
                for title, names in CHARTS.items()
            }
            layout = summary.custom_scalars({"GAD": charts})
            self._file.write_event(Event(wall_time=at, step=0, summary=layout))
        self._file.write_event(Event(wall_time=at, step=step, **content))

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()

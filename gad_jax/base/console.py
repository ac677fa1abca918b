"""What a command shows: lines, a progress bar, tables, and texts side by side.

In a terminal, lines are coloured and a bar stays below them. A file or a pipe gets plain lines
without control codes. Control characters in the text of models are replaced.
"""

import contextlib
import io
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from gad_jax.base.redaction import printable

# A part is shown if the step has all metrics that it names.
LINE = (
    "G loss {generator/loss:.4f}",
    "D loss {discriminator/loss:.4f}",
    "D accuracy {discriminator/accuracy:.2f}",
    "margin {discriminator/margin:+.2f}",
    "DPO accuracy {dpo/accuracy:.2f}",
    "margin {dpo/margin:+.3f}",
    "reward {reward/mean:+.2f} ± {reward/std:.2f}",
    "length {response/length:.0f}",
    "{response/length_ratio:.2f}× teacher",
    "cut {response/cut_share:.0%}",
    "KL {kl/reference:.4f}",
    "G grad {generator/gradient_norm:.3g}",
    "D grad {discriminator/gradient_norm:.3g}",
    "{tokens_per_second/rollout:,.0f} sampled tokens/s",
    "{tokens_per_second/update:,.0f} trained tokens/s",
    "{seconds/step:.1f} s/step",
)
# What a terminal shows where LINE is too wide, the most important first: those that fit.
SHORT = (
    "reward {reward/mean:+.2f}",
    "{response/length_ratio:.2f}× teacher",
    "D acc {discriminator/accuracy:.2f}",
    "DPO acc {dpo/accuracy:.2f}",
    "G {generator/loss:.3f}",
    "{seconds/step:.1f} s",
    "cut {response/cut_share:.0%}",
    "KL {kl/reference:.3f}",
    "D {discriminator/loss:.3f}",
)
SIDE_BY_SIDE_WIDTH = 34
FILE_WIDTH = 100
SHOWN_CHARACTERS = 1200


def step_parts(metrics: Mapping[str, float]) -> list[str]:
    """Returns the parts of a step's line whose metrics are all given."""
    return _parts(LINE, metrics)


def _parts(templates: Sequence[str], metrics: Mapping[str, float]) -> list[str]:
    parts = []
    for template in templates:
        try:
            parts.append(template.format_map(metrics))
        except KeyError:
            continue
    return parts


def fitting_parts(metrics: Mapping[str, float], width: int) -> list[str]:
    """Returns the parts of a step's line that fit the width, with two blanks between them."""
    parts = step_parts(metrics)
    if len("  ".join(parts)) <= width:
        return parts
    kept: list[str] = []
    for part in _parts(SHORT, metrics):
        if len("  ".join([*kept, part])) <= width:
            kept.append(part)
    return kept


def format_seconds(seconds: float) -> str:
    """Returns a duration as '1:02:03'; '–' for one that is not finite."""
    return "–" if not math.isfinite(seconds) else str(timedelta(seconds=round(seconds)))


class _SteadyConsole(Console):
    """A console that never hides the cursor: a killed process could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def make_console() -> Console:
    """Returns the console of a command, on stdout."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # A narrow encoding must not end a run.
    console = _SteadyConsole(highlight=False)
    if not console.is_terminal:
        console = _SteadyConsole(highlight=False, width=FILE_WIDTH)
    return console


class LogHandler(logging.StreamHandler):
    """A handler on what sys.stderr is at the time, so that lines come above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        self.stream = sys.stderr
        super().emit(record)


class Note:
    """One line on stdout that says what a command is doing, and is gone once that is done.

    In a terminal each line replaces the one before it; elsewhere all of them are printed.
    """

    def __init__(self) -> None:
        self._replaces, self._shown = sys.stdout.isatty(), False

    def say(self, line: str) -> None:
        """Shows a line."""
        if self._replaces:
            print(f"\r\x1b[K{line}", end="", flush=True)
            self._shown = True
        else:
            print(line, flush=True)

    def compiling(self, number: int, programs: int) -> None:
        """Says which of the programs is compiled now."""
        self.say(f"compiling {number} of {programs} programs")

    def clear(self) -> None:
        """Removes the line from a terminal."""
        if self._shown:
            self.say("")
            self._shown = False


class Display:
    """The console of one command. A run calls `step`; other work calls `progress`.

    Where no bar can be shown, `progress` prints a line at most every `line_seconds`. `close`
    removes the bar.
    """

    def __init__(self, console: Console | None = None, line_seconds: float = 0.0) -> None:
        self.console = make_console() if console is None else console
        self._line_seconds = line_seconds
        self._line_at = time.monotonic()
        self._total = 0
        self._done = 0
        self._stage = "starting"
        self._label = ""  # of what the run is busy with
        self._said = False  # that this step compiles
        self._recent: deque[float] = deque(maxlen=20)
        self._bar: Progress | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
                expand=True,
            )
            self._task = self._bar.add_task(self._stage, total=None, note="")

    def start(self, done: int, total: int) -> None:
        """Sets how many steps are done, and how many there are in all."""
        self._done, self._total = done, total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)

    def progress(self, done: int, note: str) -> None:
        """Shows how much of the total is done, with a note: in the bar, or as a line."""
        now = time.monotonic()
        note = printable(note)
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._task, completed=done, description="", note=note)
        elif now - self._line_at >= self._line_seconds:
            self._line_at = now
            self.console.print(f"{done} of {self._total}  {note}", soft_wrap=True, markup=False)

    def step(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Shows a step. The time left is estimated from the stage's last `seconds/step`, of steps
        that compiled nothing."""
        self._done, self._said = step, False
        if stage != self._stage:  # steps of another stage take another time
            self._stage = stage
            self._recent.clear()
        if "seconds/step" in metrics and not metrics.get("compiles"):
            self._recent.append(metrics["seconds/step"])
        mean = sum(self._recent) / len(self._recent) if self._recent else math.nan
        left = format_seconds(mean * (self._total - step))
        if self._bar is None:
            parts = step_parts(metrics)
            parts = [f"step {step}/{self._total}", stage, *parts, f"left {left}"]
            self.console.print("  ".join(parts), soft_wrap=True, markup=False, highlight=False)
            return
        line = Text(f"step {step}/{self._total}  ", style="bold")
        line.append(f"{stage}  ", style="cyan")
        parts = fitting_parts(metrics, self.console.width - len(line))
        line.append("  ".join(parts), style="not bold")
        self._bar.start()
        self.console.print(line, no_wrap=True, overflow="ellipsis")
        note = f"{left} left"
        self._bar.update(self._task, completed=step, description=stage, note=note, refresh=True)

    def notice(self, sentence: str) -> None:
        """Shows a sentence that stands out between the lines of the steps."""
        self.console.print(Text(printable(sentence), style="bold yellow"), soft_wrap=True)

    @contextlib.contextmanager
    def busy(self, label: str) -> Iterator[None]:
        """Shows what the run does inside the `with`, when that is not a step."""
        if self._bar is None:
            self.console.print(label, soft_wrap=True, markup=False, highlight=False)
        self._label, self._said = label, False
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._task, description=label, refresh=True)
        yield
        self._label, self._said = "", False
        if self._bar is not None:
            self._bar.update(self._task, description=self._stage)

    def compiling(self) -> None:
        """Shows that XLA compiles: in the bar until something else is shown, or as one line of the
        step. Does nothing before the first step is due, after the last, or once closed."""
        doing = self._label or (f"step {self._done + 1}" if self._done < self._total else "")
        if self._said or not doing:
            return
        self._said = True
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._task, description=f"{doing}: compiling", refresh=True)
        elif not self._label:
            text = f"{doing}/{self._total}  compiling"
            self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def table(self, title: str, rows: Mapping[str, Mapping[str, float | str]]) -> None:
        """Shows rows by name, with a column for each quantity that any row has."""
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("")
        for name in columns:
            table.add_column(name, justify="right")
        for name, row in rows.items():
            table.add_row(Text(name), *(_cell(row.get(column, "–")) for column in columns))
        self.console.print(table)

    def side_by_side(self, title: str, texts: Mapping[str, str]) -> None:
        """Shows texts by name in columns, or one below the other if columns would be narrow."""
        shown = {name: Text(_shortened(printable(text))) for name, text in texts.items()}
        body: RenderableType
        if self.console.width >= SIDE_BY_SIDE_WIDTH * max(len(shown), 1):
            grid = Table(expand=True, show_lines=False)
            for name in shown:
                grid.add_column(name, ratio=1, overflow="fold")
            grid.add_row(*shown.values())
            body = grid
        else:
            body = Group(
                *(
                    Panel(text, title=name, title_align="left", border_style="dim")
                    for name, text in shown.items()
                )
            )
        self.console.print(Text(_shortened(printable(title)), style="bold"))
        self.console.print(body)

    def close(self) -> None:
        """Removes the progress bar."""
        self._total = self._done
        if self._bar is not None:
            self._bar.stop()


def _cell(value: float | str) -> Text:
    if isinstance(value, float):
        value = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return Text(str(value))


def _shortened(text: str) -> str:
    text = text.strip()
    more = len(text) - SHOWN_CHARACTERS
    return text if more <= 0 else f"{text[:SHOWN_CHARACTERS]} … ({more} more characters)"

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
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from gad_jax.base import stderr, verbosity
from gad_jax.base.redaction import printable
from gad_jax.base.step_line import fitting_parts, format_seconds, step_parts

SIDE_BY_SIDE_WIDTH = 34
FILE_WIDTH = 100
STEP_WIDTH = 80
"""Of a step's line in a file: what most terminals show of it without a break."""
SHOWN_CHARACTERS = 1200


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


def moves_cursor(stream: Any) -> bool:
    """Whether a line of this stream can be replaced: it is a terminal that knows how."""
    return stream.isatty() and not stderr.is_dumb()


def start_logs(information: bool = False) -> None:
    """Shows logs as plain lines: warnings; with `information` also what our modules tell, unless
    --quiet is given; with --verbose also what libraries tell."""
    verbose = verbosity.verbose()
    level = logging.INFO if verbose or (information and not verbosity.quiet()) else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[LogHandler()])
    for noisy in () if verbose else ("jax", "orbax", "httpx", "httpx2", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


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
        self._replaces, self._shown = moves_cursor(sys.stdout), False

    def say(self, line: str) -> None:
        """Shows a line."""
        if verbosity.quiet():
            return
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
        self._compiled: deque[float] = deque(maxlen=20)  # without the time that compiling took
        self._bar: Progress | None = None
        if moves_cursor(self.console.file) and not verbosity.quiet():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
                expand=True,
                redirect_stderr=sys.stderr.isatty(),  # else it goes to a file of its own
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
            self._show_bar(self._bar)
            self._bar.update(self._task, completed=done, description="", note=note)
        elif now - self._line_at >= self._line_seconds:
            self._line_at = now
            self._say(f"{done} of {self._total}  {note}")

    def step(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Shows a step: what fits the width, or with --verbose all of it.

        The time left is estimated from the stage's last steps that compiled nothing. Without any,
        from those that did, less the time that compiling took.
        """
        self._done, self._said = step, False
        if stage != self._stage:  # steps of another stage take another time
            self._stage = stage
            self._recent.clear()
            self._compiled.clear()
        seconds = metrics.get("seconds/step")
        if seconds is not None and not metrics.get("compiles"):
            self._recent.append(seconds)
        elif seconds is not None and "seconds/compile" in metrics:
            self._compiled.append(max(seconds - metrics["seconds/compile"], 0.0))
        known = self._recent or self._compiled
        mean = sum(known) / len(known) if known else math.nan
        left = format_seconds(mean * (self._total - step))
        first, last = [f"step {step}/{self._total}", stage], f"left {left}"
        if self._bar is None:
            used = len("  ".join([*first, "", last]))
            self._say("  ".join([*first, *_shown_parts(metrics, STEP_WIDTH - used), last]))
            return
        line = Text(f"{first[0]}  ", style="bold")
        line.append(f"{stage}  ", style="cyan")
        parts = _shown_parts(metrics, self.console.width - len(line))
        line.append("  ".join(parts), style="not bold")
        self._show_bar(self._bar)
        self.console.print(line, soft_wrap=True)
        note = f"{left} left"
        self._bar.update(self._task, completed=step, description=stage, note=note, refresh=True)

    def notice(self, sentence: str) -> None:
        """Shows a sentence that stands out between the lines of the steps."""
        self.console.print(Text(printable(sentence), style="bold yellow"), soft_wrap=True)

    @contextlib.contextmanager
    def busy(self, label: str) -> Iterator[None]:
        """Shows what the run does inside the `with`, when that is not a step."""
        self._label, self._said = label, False
        if self._bar is None:
            self._say(label)
        else:
            self._show_bar(self._bar)
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
            self._show_bar(self._bar)
            self._bar.update(self._task, description=f"{doing}: compiling", refresh=True)
        elif not self._label:
            self._say(f"{doing}/{self._total}  compiling")

    def _say(self, line: str) -> None:
        """Prints a line of progress, where there is no bar."""
        if not verbosity.quiet():
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _show_bar(self, bar: Progress) -> None:
        """Shows the bar; what others write to the terminal comes above it from then on."""
        if not bar.live.is_started:
            stderr.capture(self._show_foreign)
            bar.start()

    def _show_foreign(self, lines: str) -> None:
        self.console.print(printable(lines), soft_wrap=True, markup=False, highlight=False)

    def table(self, title: str, rows: Mapping[str, Mapping[str, float | str]]) -> None:
        """Shows rows by name, with a column for each quantity that any row has. Columns that do not
        fit the width follow in a further table."""
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        while columns or title:
            count = len(columns)
            table = _table(title, columns, rows)
            unbounded = self.console.options.update(max_width=10_000)
            while (
                count > 1
                and self.console.measure(table, options=unbounded).maximum > self.console.width
            ):
                count -= 1
                table = _table(title, columns[:count], rows)
            self.console.print(table)
            title, columns = "", columns[count:]

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
        if self._bar is not None and self._bar.live.is_started:
            stderr.release()
            self._bar.stop()


def _shown_parts(metrics: Mapping[str, float], width: int) -> list[str]:
    """Returns the parts of a step's line that fit the width, with --verbose all of them."""
    return step_parts(metrics) if verbosity.verbose() else fitting_parts(metrics, width)


def _table(
    title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, float | str]]
) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for name, row in rows.items():
        table.add_row(Text(name), *(_cell(row.get(column, "–")) for column in columns))
    return table


def _cell(value: float | str) -> Text:
    if isinstance(value, float):
        value = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return Text(str(value))


def _shortened(text: str) -> str:
    text = text.strip()
    more = len(text) - SHOWN_CHARACTERS
    return text if more <= 0 else f"{text[:SHOWN_CHARACTERS]} … ({more} more characters)"

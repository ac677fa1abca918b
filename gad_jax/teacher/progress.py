"""What a collection shows while it runs: answers, rate, time left and spend."""

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gad_jax.base.console import format_seconds
from gad_jax.teacher.budget import Budget
from gad_jax.teacher.requests import Collection

LINE_SECONDS = 10.0


class Shown:
    """A bar in a terminal; elsewhere a line from time to time."""

    def __init__(self, console: Console, total: int, line_seconds: float) -> None:
        self._console, self._total, self._line_seconds = console, total, line_seconds
        self._started = self._line_at = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._bar = Progress(
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                console=console,
                transient=True,
                expand=True,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()

    def update(self, asking: Collection) -> None:
        """Shows how far it is."""
        now = time.monotonic()
        text = self._text(asking, now - self._started)
        if self._bar is not None:
            self._bar.update(self._task, completed=asking.answered, description=text)
        elif now - self._line_at >= self._line_seconds:
            self._line_at = now
            self._console.print(f"{asking.answered} of {self._total}  {text}", soft_wrap=True)

    def _text(self, asking: Collection, seconds: float) -> str:
        rate = asking.answered / seconds if seconds > 0 else 0.0
        open_questions = self._total - asking.answered - asking.refused - asking.unanswered
        left = open_questions / rate if rate else math.inf
        parts = [f"{rate:.1f}/s", f"left {format_seconds(left)}", spend(asking.budget)]
        faults = sum(asking.faults.values())
        more = (asking.note, f"{faults} faults" if faults else "")
        return "  ".join([*parts, *(part for part in more if part)])

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()


def spend(budget: Budget) -> str:
    """Returns tokens, and their cost where prices are known."""
    prices = budget.prices
    cost = f", cost {budget.cost:.4g}" if prices.prompt or prices.completion else ""
    return f"{budget.spent.tokens:,} tokens{cost}"

"""What a run of requests shows: responses, rate, time left and cost."""

import math
import time

from gad_jax.base.console import Display
from gad_jax.base.step_line import format_seconds
from gad_jax.teacher.budget import Budget
from gad_jax.teacher.requests import Requests

LINE_SECONDS = 10.0


class Progress:
    """The state of a run of requests, on a `Display`."""

    def __init__(self, display: Display, total: int) -> None:
        self._display, self._total = display, total
        self._started = time.monotonic()
        display.start(0, total)

    def update(self, requests: Requests) -> None:
        """Shows how far the run is."""
        seconds = time.monotonic() - self._started
        self._display.progress(requests.answered, note(requests, self._total, seconds))


def note(requests: Requests, total: int, seconds: float) -> str:
    """Returns rate, time left, cost and faults of a run that has taken so many seconds."""
    rate = requests.answered / seconds if seconds > 0 else 0.0
    missing = total - requests.answered - requests.refused - requests.unanswered
    left = missing / rate if rate else math.inf
    parts = [f"{rate:.1f}/s", f"left {format_seconds(left)}", cost(requests.budget)]
    faults = sum(requests.faults.values())
    more = (requests.note, f"{faults} faults" if faults else "")
    return "  ".join([*parts, *(part for part in more if part)])


def cost(budget: Budget) -> str:
    """Returns the tokens spent, and their cost where prices are known."""
    prices = budget.prices
    price = f", cost {budget.cost:.4g}" if prices.prompt or prices.completion else ""
    return f"{budget.spent.tokens:,} tokens{price}"

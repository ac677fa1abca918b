"""What a term of the reward sees of a response, and the built-in terms."""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import regex

from gad_jax.base.errors import UserError
from gad_jax.settings.fields import show
from gad_jax.settings.reward import Reward


class Row(NamedTuple):
    """A response of the student, as a term sees it.

    `prompt` is the last message of the user, `messages` the whole conversation, and `teacher` the
    teacher's response to it. Tokens are counted with the end token. `finished` is False for a
    response cut at the limit. `id` names the training row, `sample` counts the prompt's responses
    from 0. The answers are without thoughts; a response that was cut inside one has none.
    """

    prompt: str
    response: str
    teacher: str
    tokens: int
    teacher_tokens: int
    finished: bool
    messages: list[dict[str, str]]
    id: str
    sample: int
    answer: str
    teacher_answer: str

    @property
    def place(self) -> str:
        """What an error calls it."""
        return f"response {self.sample + 1} to {self.id}"


Rule = Callable[[Row], float]


def rule(name: str, settings: Reward) -> Rule:
    """Returns the built-in term of this name."""
    if name == "finished":
        return lambda row: float(row.finished)
    if name == "format":
        return _format(settings.format, settings.timeout)
    assert name == "length"
    low, high = settings.min_length_ratio, settings.max_length_ratio
    return lambda row: outside(row.tokens / row.teacher_tokens, low, high)


def outside(ratio: float, low: float, high: float) -> float:
    """Returns 0 for a ratio in [low, high], and minus its distance from there in the logarithm:
    twice the longest and half of the shortest length both give -ln 2."""
    if ratio < low:
        return math.log(ratio / low)
    return math.log(high / ratio) if ratio > high else 0.0


def values(rule: Rule, rows: Sequence[Row]) -> list[float]:
    """Returns a rule's value of each response."""
    return [rule(row) for row in rows]


_ITEM = re.compile(
    r"\\N\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?:\d+(?:,\d*)?|,\d*)\}|\{", re.DOTALL
)
"""An escape, a set, a repeat, or another brace of a regular expression."""


def _format(expression: str, timeout: float) -> Rule:
    """Returns the rule that looks for Python's expression in a response.

    The package regex searches: `re` cannot be interrupted, and with a repeat in a repeat it may
    need years.
    """
    wanted = regex.compile(_ITEM.sub(_as_in_re, expression))

    def found(row: Row) -> float:
        try:
            return float(wanted.search(row.response, timeout=timeout) is not None)
        except TimeoutError:
            raise UserError(
                f"--reward.format={expression!r}: a search took longer than {show(timeout)} s, in "
                f"{row.place}; write it without a repeat in a repeat, or raise --reward.timeout"
            ) from None

    return found


def _as_in_re(item: re.Match[str]) -> str:
    """Returns an item as the package regex reads what it is to `re`: there, `d{s}` is an
    approximate match, and `[[:digit:]]` a class."""
    if item[0] == "{":
        return r"\{"
    if item[0][0] == "[":
        inner = re.sub(r"\\.|\[", lambda x: x[0] if x[0] != "[" else r"\[", item[0][1:], flags=re.S)
        return f"[{inner}"
    return item[0]

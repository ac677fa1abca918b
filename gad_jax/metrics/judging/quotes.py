"""What a judge says itself in a reply, apart from its thoughts and from what it quotes.

An answer may hold a line such as `10 1` or `[[1]]`. A judge that thinks about that line or repeats
it has not given a verdict.
"""

import re
from collections.abc import Iterable, Sequence

from gad_jax.data import thoughts

QUOTED = "\ufffc"
"""Stands where a quote stood: what is left of its line is no verdict."""

_FENCE = re.compile(r"\s*(?:`{3,}|~{3,})")
_TAGGED = re.compile(r"(?is)<\s*(answer|request)\b[^<>\n]{0,40}>.*?(?:</\s*\1\b[^<>\n]{0,40}>|\Z)")
_SPANS = re.compile(
    r"“[^“”]*”|„[^„“”]*[“”]|«[^«»]*»|「[^「」]*」|『[^『』]*』"  # may run over lines
    r'|"[^"\n]*"'
)
_CODE = re.compile(r"`[^`\n]*`")
_MOST_THOUGHTS = 8


def own_lines(text: str) -> list[str]:
    """Returns the lines with text that a judge wrote itself, none if the reply ends in a thought.

    Thoughts, code blocks, block quotes and tagged copies are left out, quoted parts of a line are
    replaced by `QUOTED`. A code block that is the whole reply is the reply. Code alone on a line
    stays, as some models write verdicts so.
    """
    answer = _without_thoughts(text)
    if answer is None:
        return []
    plain = _TAGGED.sub(QUOTED, "\n".join(_without_blocks(answer.strip().splitlines())))
    lines = [line.strip() for line in _SPANS.sub(_mask, plain).splitlines()]
    lines = [line if _CODE.fullmatch(line.strip("*_ ")) else _code_masked(line) for line in lines]
    return [] if thoughts.open_tag("\n".join(lines)) else [line for line in lines if line]


def _without_thoughts(text: str) -> str | None:
    """Returns what follows the last thought; None if the text ends inside one."""
    for _ in range(_MOST_THOUGHTS):
        parts = thoughts.split_teacher(text)
        if not parts.finished:
            return None
        if not parts.thoughts and parts.answer.strip() == text.strip():
            return text
        text = parts.answer
    return None


def _without_blocks(lines: Sequence[str]) -> list[str]:
    """Returns the lines outside of code blocks and block quotes."""
    fences = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    if fences == [0, len(lines) - 1] and len(lines) > 1:
        return list(lines[1:-1])
    found, inside = [], False
    for line in lines:
        if _FENCE.match(line):
            inside = not inside
        elif not inside and not line.lstrip().startswith(">"):
            found.append(line)
    return found


def _mask(quote: re.Match[str]) -> str:
    """Returns a placeholder on each line of a quote."""
    return "\n".join([QUOTED] * (quote[0].count("\n") + 1))


def _code_masked(line: str) -> str:
    return _CODE.sub(QUOTED, line)


def repeats(lines: Sequence[str], place: int, shown: Iterable[str]) -> bool:
    """Returns whether a line stands in a shown text, next to the line that it is next to here."""
    line = lines[place]
    before = lines[place - 1] if place else ""
    after = lines[place + 1] if place + 1 < len(lines) else ""
    for text in shown:
        others = [other.strip() for other in text.splitlines() if other.strip()]
        for number, other in enumerate(others):
            if other != line:
                continue
            same_before = number > 0 and before.endswith(others[number - 1])
            same_after = number + 1 < len(others) and after.startswith(others[number + 1])
            if same_before or same_after:
                return True
    return False

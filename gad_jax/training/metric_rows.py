"""The rows of metrics.jsonl when a run resumes: cut at its step, damaged ones left out."""

import bisect
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from gad_jax.base import files


class Resumed(NamedTuple):
    """The rows that are left, and a sentence where rows are missing."""

    rows: list[dict[str, Any]]
    notice: str = ""


def resume(path: Path, step: int) -> Resumed:
    """Cuts the file after the rows of steps up to `step`.

    A line that is no row, or whose step is out of order, is left out; the rows after it stay. Where
    a row is then missing, the file as it was is kept as metrics.jsonl.corrupt-TIME. A torn last
    line, which a killed process leaves, is cut off.
    """
    content = path.read_bytes() if path.exists() else b""
    lines = content.split(b"\n")[:-1]
    found = [(row, line) for line in lines if (row := _parse(line)) is not None]
    in_order = _ascending(found)
    kept = [(row, line) for row, line in in_order if row["step"] <= step]
    rows = [row for row, _ in kept]
    missing = sorted(set(range(1, step + 1)) - {row["step"] for row in rows})
    notice = ""
    if missing:
        notice = f"{path.name} has no rows of {_spans(missing)}"
        if len(in_order) < len(lines):
            copy = f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
            files.write_atomic(path.with_name(copy), content)
            notice = f"{path.name} was damaged: the rows of {_spans(missing)} are lost, the others "
            notice += f"stay; the file as it was is {copy}"
    left = b"".join(line + b"\n" for _, line in kept)
    if content.startswith(left):
        if len(left) < len(content):
            with open(path, "r+b") as file:
                file.truncate(len(left))
    else:
        files.write_atomic(path, left)
    return Resumed(rows, notice)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file that are intact, and leaves it as it is."""
    lines = path.read_bytes().split(b"\n")[:-1]
    found = [(row, line) for line in lines if (row := _parse(line)) is not None]
    return [row for row, _ in _ascending(found)]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        return row if type(row["step"]) is int and row["step"] > 0 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _ascending(found: list[tuple[dict[str, Any], bytes]]) -> list[tuple[dict[str, Any], bytes]]:
    """Returns the longest part of the rows whose steps ascend: a damaged step is out of order."""
    ends: list[int] = []  # for each length, the smallest step that such a part can end in
    places: list[int] = []
    before: list[int] = []
    for place, (row, _) in enumerate(found):
        length = bisect.bisect_left(ends, row["step"])
        before.append(places[length - 1] if length else -1)
        ends[length : length + 1] = [row["step"]]
        places[length : length + 1] = [place]
    chosen, place = [], places[-1] if places else -1
    while place >= 0:
        chosen.append(found[place])
        place = before[place]
    return chosen[::-1]


def _spans(steps: list[int]) -> str:
    """Returns steps, which ascend, as 'step 3' or 'steps 3, 5 to 9'."""
    spans: list[list[int]] = []
    for step in steps:
        if spans and step == spans[-1][1] + 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])
    shown = [f"{a}" if a == b else f"{a} to {b}" for a, b in spans[:5]]
    more = " and others" if len(spans) > 5 else ""
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(shown)}{more}"

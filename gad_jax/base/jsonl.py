"""JSON Lines files, one object per line, that only ever grow: a torn last line is no row."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gad_jax.base import files


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of a metrics.jsonl, without the torn last line of a run that was killed."""
    lines = Path(path).read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def truncate_rows(path: str | os.PathLike[str], step: int) -> int:
    """Cuts a metrics.jsonl after the rows of steps up to `step`; returns how many rows are left.

    A line that is torn ends the file too.
    """
    kept, size = 0, 0
    with open(path, "r+b") as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept, size = kept + 1, size + len(line)
        file.truncate(size)
    return kept


def amend_last_row(path: str | os.PathLike[str], step: int, metrics: Mapping[str, float]) -> None:
    """Adds metrics to the last row of a metrics.jsonl if it is that of `step`, all at once."""
    lines = Path(path).read_bytes().splitlines(keepends=True)
    if not lines or (row := json.loads(lines[-1]))["step"] != step:
        return
    numbers = {name: _json_number(float(value)) for name, value in metrics.items()}
    if row | numbers != row:
        last = json.dumps(row | numbers, allow_nan=False) + "\n"
        files.write_atomic(path, b"".join(lines[:-1]) + last.encode())


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None

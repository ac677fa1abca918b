"""Append-only JSON Lines files: one object per line.

A process that is killed may leave a torn last line, one without its line feed. Readers skip it, and
`Appender` cuts it off before it adds anything.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gad_jax.base import files


def encode(row: Mapping[str, Any]) -> bytes:
    """Returns the line of a row, with its line feed."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def read_lines(path: str | os.PathLike[str]) -> list[bytes]:
    """Returns the whole lines of a file without their line feeds; a torn last line is left out.
    Raises UserError for a pipe, a device or a directory."""
    files.need_regular(path)
    return Path(path).read_bytes().split(b"\n")[:-1]


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of a file; a torn last line is left out."""
    return [json.loads(line) for line in read_lines(path)]


def cut_torn_line(path: str | os.PathLike[str]) -> None:
    """Cuts off a torn last line."""
    content = Path(path).read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


class Appender:
    """Adds rows to a file, which is made if needed; one process at a time, so the caller locks.

    Opening cuts off a torn last line. With `whole_bytes` the caller says where the whole lines
    end, and the last one gets a line feed if it lacks one. Rows are on the disk when `append`
    returns, so that neither kill -9 nor a power failure drops them. With `sync=False` they survive
    kill -9 only.

        with Appender("votes.jsonl") as file:
            file.append([{"winner": "gad"}])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        whole_bytes: int | None = None,
        *,
        sync: bool = True,
    ) -> None:
        self._sync = sync
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        try:
            if whole_bytes is not None:
                self._file.truncate(whole_bytes)
            elif self._lacks_line_feed():
                cut_torn_line(path)
            if self._lacks_line_feed():
                self.write(b"\n")
            elif sync:
                os.fsync(self._file.fileno())
            if sync and not self._size():
                files.sync_directory(Path(path).parent)  # else the new name may not survive
        except BaseException:
            self.close()
            raise

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _lacks_line_feed(self) -> bool:
        size = self._size()
        return size > 0 and os.pread(self._file.fileno(), 1, size - 1) != b"\n"

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows, all or none: raises OSError when they cannot be written."""
        self.write(b"".join(map(encode, rows)))

    def write(self, lines: bytes) -> None:
        """Adds lines that `encode` made, as `append` does."""
        size = self._size()
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[self._file.write(rest) :]
            if self._sync:
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(size)
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "Appender":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def amend_last_row(path: str | os.PathLike[str], step: int, metrics: Mapping[str, float]) -> None:
    """Adds metrics to the last row of a metrics.jsonl if it is that of `step`, all at once."""
    lines = Path(path).read_bytes().splitlines(keepends=True)
    if not lines or (row := json.loads(lines[-1]))["step"] != step:
        return
    amended = row | json_numbers(metrics)
    if amended != row:
        last = json.dumps(amended, allow_nan=False) + "\n"
        files.write_atomic(path, b"".join(lines[:-1]) + last.encode())


def json_numbers(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Returns metrics as JSON can hold them: null for a number that is not finite."""
    numbers = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}

"""A bound on what a compressed file may hold, so that a small one cannot fill the memory."""

from pathlib import Path

from gad_jax.base.errors import UserError

FREE_BYTES = 2**28
ROW_BYTES = 64
"""What a row counts at least: one of nulls or a blank line takes some time and memory, too."""
MOST_TIMES = 200
"""Text compresses 3 to 30 times. gzip ends at 1032 times; Zstandard and Parquet have no end."""


class Expansion:
    """Counts the bytes that a file gave so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._limit = max(FREE_BYTES, MOST_TIMES * path.stat().st_size)
        self._bytes = 0

    def add(self, count: int) -> None:
        """Adds bytes; raises UserError where they are too many for the size of the file."""
        self._bytes += count
        if self._bytes > self._limit:
            raise UserError(
                f"{self._path}: holds more than {MOST_TIMES} times its {self._path.stat().st_size} "
                f"bytes, which no real text does; check the file, or give it uncompressed"
            )

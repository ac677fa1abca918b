"""Parquet files, read a batch of rows at a time."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError, first_line
from gad_jax.data.sources.expansion import MOST_TIMES, ROW_BYTES, Expansion
from gad_jax.data.sources.rows import Invalid, Record

MAGIC = b"PAR1"
_BATCH_ROWS = 64
_BUFFER_BYTES = 2**20
_FREE_CHUNK_BYTES = 2**24


def records(path: Path) -> Iterator[Record]:
    """Yields (file:row, object) for each row, counted from 1."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path}: reading Parquet needs the package pyarrow; install it or give JSONL"
        ) from error

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            expansion = Expansion(path)
            _check_chunks(file.metadata, expansion)
            yield from rows(path, file.iter_batches(_BATCH_ROWS), expansion)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: not a whole Parquet file ({first_line(error)}); fetch it again"
        ) from error


def rows(path: Path, batches: Iterable[Any], expansion: Expansion) -> Iterator[Record]:
    """Yields (file:row, object) for each row of Arrow batches, which should be of few rows."""
    number = 0
    for batch in batches:
        expansion.add(batch.nbytes + ROW_BYTES * len(batch))
        for record in _unfolded(batch, expansion) if _folds(batch.schema) else objects(batch):
            number += 1
            yield f"{path.name}:{number}", record


_FOLDED = ("dictionary", "run_end_encoded", "_view")


def _folds(schema: Any) -> bool:
    """Returns whether one stored text may stand for many rows."""
    return any(word in str(kind) for kind in schema.types for word in _FOLDED)


def _unfolded(batch: Any, expansion: Expansion) -> Iterator[Any]:
    """Yields the rows of such a batch one at a time, and counts their texts."""
    for number in range(len(batch)):
        for record in objects(batch.slice(number, 1)):
            expansion.add(_characters(record))
            yield record


def _characters(value: Any) -> int:
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return sum(map(_characters, inside), len(value))
    return len(value) if isinstance(value, str | bytes) else 0


def _check_chunks(metadata: Any, expansion: Expansion) -> None:
    """Raises UserError for a chunk of a column that expands too much: a dictionary of one long text
    may stand for each row of a batch."""
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            most = max(_FREE_CHUNK_BYTES, MOST_TIMES * chunk.total_compressed_size)
            if chunk.total_uncompressed_size > most:
                expansion.add(2**63)


def objects(batch: Any) -> list[Any]:
    """Returns the rows of an Arrow batch; Invalid in place of one that is not UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) > 1:
            return [row for n in range(len(batch)) for row in objects(batch.slice(n, 1))]
        return [Invalid("not UTF-8")]

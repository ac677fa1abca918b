"""Arrow files, as `datasets` saves them, and Feather: a few rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError, first_line
from gad_jax.data.sources import parquet
from gad_jax.data.sources.expansion import Expansion
from gad_jax.data.sources.rows import Record

MAGIC = b"ARROW1"
_ROWS = 64


def records(path: Path) -> Iterator[Record]:
    """Yields (file:row, object) for each row, counted from 1."""
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"{path}: reading Arrow needs the package pyarrow; install it or give JSONL"
        ) from error

    try:
        with pyarrow.memory_map(str(path)) as file:
            yield from parquet.rows(path, _batches(file), Expansion(path))
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: not a whole Arrow file ({first_line(error)}); fetch it again"
        ) from error


def _batches(file: Any) -> Iterator[Any]:
    """Yields batches of at most `_ROWS` rows."""
    for batch in _stored_batches(file):
        for start in range(0, len(batch), _ROWS):
            yield batch.slice(start, _ROWS)


def _stored_batches(file: Any) -> Iterator[Any]:
    import pyarrow

    begin = file.read(len(MAGIC))
    file.seek(0)
    if begin != MAGIC:
        yield from pyarrow.ipc.open_stream(file)
        return
    reader = pyarrow.ipc.open_file(file)
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)

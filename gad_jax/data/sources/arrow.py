"""Arrow files, as `datasets` saves them, and Feather: a few rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError, first_line
from gad_jax.data.sources import ipc, parquet
from gad_jax.data.sources.expansion import Expansion
from gad_jax.data.sources.rows import Record

MAGIC = b"ARROW1"
_ROWS = 64
_STREAM_AT = 8


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
            expansion = Expansion(path)
            for compressed in _messages(file):
                expansion.add(ipc.expanded_bytes(compressed))
            yield from parquet.rows(path, _batches(file), expansion)
    except (pyarrow.ArrowException, ipc.Damaged) as error:
        raise UserError(
            f"{path}: not a whole Arrow file ({first_line(error)}); fetch it again"
        ) from error


def _messages(file: Any) -> Iterator[Any]:
    """Yields the messages of a file; a batch is decompressed whole, so it is looked at before."""
    import pyarrow

    _to_stream(file)
    yield from iter(pyarrow.ipc.MessageReader.open_stream(file))


def _batches(file: Any) -> Iterator[Any]:
    """Yields batches of at most `_ROWS` rows."""
    import pyarrow

    _to_stream(file)
    for batch in pyarrow.ipc.open_stream(file):
        batch.validate(full=True)  # offsets beyond the texts would read other memory
        for start in range(0, len(batch), _ROWS):
            yield batch.slice(start, _ROWS)


def _to_stream(file: Any) -> None:
    """Moves to the stream of messages; a Feather file has one after its mark."""
    file.seek(0)
    begin = file.read(_STREAM_AT)
    file.seek(_STREAM_AT if begin.startswith(MAGIC) else 0)

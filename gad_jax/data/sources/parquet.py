"""Parquet files, read a batch of rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError, first_line
from gad_jax.data.sources.rows import Invalid, Record

PROMPTS = ("messages", "content", "instruction", "prompt", "turns", "text")
COLUMNS = (
    *(*PROMPTS, "input", "context", "instances", "teacher_response", "id", "question_id"),
    *("finish_reason", "key", "sample"),  # of collected responses
)
_BATCH_ROWS = 1024


def records(path: Path, need_response: bool = True) -> Iterator[Record]:
    """Yields (file:row, object) for each row, counted from 1."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path}: reading Parquet needs the package pyarrow; install it or give JSONL"
        ) from error

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names, need_response)
            number = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                for record in _objects(batch):
                    number += 1
                    yield f"{path.name}:{number}", record
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: not a whole Parquet file ({first_line(error)}); fetch it again"
        ) from error


def _columns(path: Path, names: list[str], need_response: bool) -> list[str]:
    needed: dict[str, set[str]] = {"'messages', 'content' or 'prompt'": set(PROMPTS)}
    if need_response:
        needed["'teacher_response'"] = {"teacher_response"}
    for missing, choices in needed.items():
        if not choices & set(names):
            raise UserError(
                f"{path.name}: no column {missing} (its columns: {', '.join(names)}); rename the "
                "one that holds it"
            )
    return [name for name in COLUMNS if name in names]


def _objects(batch: Any) -> list[Any]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) > 1:
            return [row for n in range(len(batch)) for row in _objects(batch.slice(n, 1))]
        return [Invalid("not UTF-8")]

"""Rows of teacher text from files, directories, hub datasets and the bundled set.

One module per kind of source yields raw records; `formats` finds prompt and answers in them. To add
a kind, write such a module and name it in `_file_records`.
"""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.data.sources import (
    arrow,
    batches,
    delimited,
    documents,
    hub,
    opening,
    parquet,
    paths,
    text,
)
from gad_jax.data.sources.fields import Fields, shown
from gad_jax.data.sources.formats import parse
from gad_jax.data.sources.notes import Notes
from gad_jax.data.sources.prompts import OWN
from gad_jax.data.sources.rows import (
    Invalid,
    Record,
    Row,
    Rows,
    collected_key,
    is_unfinished,
)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_BUNDLED = {"bundled": "train.jsonl", "bundled:heldout": "heldout.jsonl"}
_LOOKED_AT = 20  # rows after the first, to see whether all have the same columns
_BUNDLED_DIRECTORY = Path(__file__).parent.parent / "bundled"


def read(
    name: str | Path,
    *,
    skip_invalid: bool = False,
    skip_flag: str = "",
    split: str = "train",
    need_response: bool = True,
    keep_unfinished: bool = False,
    prompt_field: str = "",
    response_field: str = "",
    rejected_field: str = "",
) -> Rows:
    """Returns the rows of a file, a directory, a pattern of files, a hub dataset, or bundled.

    A row holds a conversation or a text, and the teacher's answer: `formats` knows where by the
    names of the columns, or the two fields say it. The answer is optional without `need_response`,
    and rejected ones are read where their field is given.
    `split`, or the end of a name (`ORG/NAME:test`), picks a part of a hub dataset or the files of a
    directory; a single file is read whole. A `.txt` file has a prompt per line.

    Several collected responses to one prompt become one row. Responses that were cut, refused or
    empty are dropped and counted, unless `keep_unfinished`: then an empty one is malformed.

    Raises UserError for a malformed row, and for a second row with the same id in a file. With
    `skip_invalid` such rows are dropped and counted by reason; `skip_flag` is the command's flag
    for that, which the error advises where there is one.

        read("train.jsonl")[0].messages[-1]["content"]
    """
    name, split = _with_split(str(name), split)
    # The bundled rows keep their columns when those of one's own rows are named.
    named = ("", "") if name in _BUNDLED else (prompt_field, response_field)
    fields = Fields(*named, rejected_field)
    reader = _Reader(need_response, keep_unfinished, fields, skip_flag)
    stream = records(name, split, need_response)
    for where, record in stream:
        problem = reader.add(where, record)
        if problem is not None and not skip_invalid:
            rest = (record for _, record in itertools.islice(stream, _LOOKED_AT))
            raise reader.refusal(where, record, problem, rest)
    if not reader.rows:
        raise reader.no_rows(name)
    return Rows(
        name,
        tuple(reader.rows),
        dict(reader.skipped),
        skip_invalid,
        reader.unfinished,
        (*reader.notes.lines(name), *_missing_answers(name, fields.response, reader.rows)),
    )


class _Reader:
    """The rows of a source so far."""

    def __init__(
        self, need_response: bool, keep_unfinished: bool, fields: Fields, skip_flag: str
    ) -> None:
        self.rows: list[Row] = []
        self.skipped: Counter[str] = Counter()
        self.unfinished = 0
        self.notes = Notes()
        self._how = (need_response, fields)
        self._skip_flag = skip_flag
        self._drop_unfinished = need_response and not keep_unfinished
        self._seen: dict[str, dict[str, str]] = {}
        self._groups: dict[str, int] = {}
        self._first: tuple[str, Any, Invalid] | None = None

    def add(self, where: str, record: Any) -> Invalid | None:
        """Adds a record, or counts it as unfinished or invalid; returns what is wrong with it."""
        if self._drop_unfinished and is_unfinished(record):
            self.unfinished += 1
            return None
        try:
            row = parse(where, record, *self._how, self.notes)
            row = self._finished(row)
            if row is None:
                return None
            row = self._with_own_id(row, where, record)
            _add(self.rows, row, collected_key(record), self._groups)
        except Invalid as problem:
            self.skipped[problem.reason] += 1
            self._first = self._first or (where, record, problem)
            return problem
        return None

    def _finished(self, row: Row) -> Row | None:
        """Returns the row without responses that were cut, unless they are kept; None if none is
        left."""
        if all(row.complete) or not self._how[0]:
            return row
        kept = [n for n, complete in enumerate(row.complete) if complete]
        if not self._drop_unfinished:
            if not all(response.strip() for response in row.responses):
                raise Invalid("the teacher's answer is empty")
            return row
        self.unfinished += len(row.complete) - len(kept)
        responses = tuple(row.responses[n] for n in kept)
        return dataclasses.replace(row, responses=responses, complete=()) if kept else None

    def _with_own_id(self, row: Row, where: str, record: Any) -> Row:
        """Raises Invalid for an id that an earlier line has. In other formats an id may come twice,
        and the second row goes by its place."""
        if row.id == where:  # the record has no id
            return row
        file, _, line = where.rpartition(":")
        first = self._seen.setdefault(file, {}).setdefault(row.id, line)
        if first == line:
            return row
        own = {"id", "question_id"} & set(record) and (OWN in record or not self._how[0])
        if own:
            raise Invalid("the id is given twice", f": {row.id!r} is that of {file}:{first} too")
        return dataclasses.replace(row, id=where)

    def refusal(
        self, where: str, record: Any, problem: Invalid, following: Iterable[Any]
    ) -> UserError:
        """Returns the error for a row; with other advice if all rows have other columns."""
        if problem.columns and not self.rows and all(map(self._like(problem), following)):
            return wrong_columns(where, record, problem)
        skip = f" or pass {self._skip_flag}" if self._skip_flag else ""
        return UserError(f"{where}: {problem}; drop the row{skip}")

    def _like(self, problem: Invalid) -> Callable[[Any], bool]:
        def same(record: Any) -> bool:
            try:
                parse("", record, *self._how)
            except Invalid as other:
                return other.reason == problem.reason
            return False

        return same

    def no_rows(self, name: str) -> UserError:
        """Returns the error for a source without rows."""
        if self._first and self._first[2].columns and len(self.skipped) == 1:
            return wrong_columns(*self._first)
        return _no_rows(name, self.skipped, self.unfinished)


def _missing_answers(name: str, column: str, rows: list[Row]) -> list[str]:
    """Returns a warning where a column is named for the answers and no row has one there."""
    if not column or any(row.responses for row in rows):
        return []
    return [
        f"warning: {name}: no row has an answer in {column!r}, which --data.response names; its "
        "prompts are read without answers"
    ]


def wrong_columns(where: str, record: Any, problem: Invalid) -> UserError:
    """Returns the error for a file whose columns are not known: what they are, and the flags."""
    advice = problem.advice or (
        "name those of prompt and answer with --data.prompt=FIELD --data.response=FIELD (FIELD may "
        "be a path such as response.body.text)"
    )
    columns = f" (its columns: {shown(record)})" if isinstance(record, dict) else ""
    return UserError(f"{where}: {problem}{columns}; {advice}")


def _no_rows(name: str, skipped: Counter[str], unfinished: int) -> UserError:
    reasons = ", ".join(f"{count}: {reason}" for reason, count in skipped.most_common())
    found = f"all rows are invalid ({reasons})" if skipped else "no rows"
    if unfinished:
        found += f"; {unfinished} responses were cut, refused or empty"
    return UserError(f"{name}: {found}; give a file with at least one valid row")


def _add(rows: list[Row], row: Row, key: str | None, groups: dict[str, int]) -> None:
    """Adds a row, or its responses to the row with the same key; `groups` is key → index."""
    index = len(rows) if key is None else groups.setdefault(key, len(rows))
    if index < len(rows) and rows[index].messages == row.messages:
        responses = rows[index].responses + row.responses
        complete = rows[index].complete + row.complete
        rejected = rows[index].rejected + row.rejected
        rows[index] = dataclasses.replace(
            rows[index], responses=responses, complete=complete, rejected=rejected
        )
    else:
        rows.append(row)


def _with_split(name: str, split: str) -> tuple[str, str]:
    """Returns the name and the split: the one at the end of the name, else the given one."""
    base, _, suffix = name.rpartition(":")
    known = Path(base).is_dir() or _HUB_NAME.fullmatch(base)
    if base and suffix.isidentifier() and known and not Path(name).exists():
        return base, suffix
    return name, split


def records(name: str, split: str, need_response: bool) -> Iterator[Record]:
    """Yields the raw records of a file, directory, pattern, hub dataset or bundled set."""
    path = Path(name)
    if name in _BUNDLED:
        yield from _file_records(_BUNDLED_DIRECTORY / _BUNDLED[name], need_response)
    elif path.is_dir():
        yield from _of_several(paths.in_directory(path, split), need_response)
    elif path.exists():
        yield from _file_records(path, need_response)
    elif found := paths.matching(name):
        yield from _of_several(found, need_response)
    elif _HUB_NAME.fullmatch(name) and paths.suffix(path) is None:
        base, _, config = name.partition(":")
        yield from hub.records(base, split, config)
    else:
        raise UserError(
            f"{name}: no such file; give a {paths.KINDS} file, a directory or a pattern of them, a "
            f"hub dataset ORG/NAME, or {' or '.join(_BUNDLED)}"
        )


def _of_several(files: list[Path], need_response: bool) -> Iterator[Record]:
    """Yields the records of several files; a place in one of the same name as another has its
    directory before it."""
    names = Counter(path.name for path in files)
    for path in files:
        for where, record in _file_records(path, need_response):
            yield (where if names[path.name] == 1 else str(path.parent / where)), record


def _file_records(path: Path, need_response: bool) -> Iterator[Record]:
    try:
        yield from _reader(path, need_response)(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); check the file"
        ) from error


def _reader(path: Path, need_response: bool) -> batches.Reader:
    """Returns what reads a file, by its first bytes or else by the end of its name."""
    begin, suffix = opening.head(path), paths.suffix(path)
    opening.refuse_other(path, begin)
    if suffix == ".parquet" or begin.startswith(parquet.MAGIC):
        return parquet.records
    if suffix == ".arrow" or begin.startswith(arrow.MAGIC):
        return arrow.records
    if suffix in (".csv", ".tsv"):
        return delimited.records
    if suffix is not None:
        return lambda path: batches.joined(path, documents.records(path), documents.records)
    if ".txt" in path.suffixes and not need_response:
        return text.records
    raise UserError(
        f"{path}: unknown kind of file; give {paths.KINDS}"
        + (", or .txt with a prompt per line" if not need_response else "")
    )

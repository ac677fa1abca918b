"""Rows of teacher text from files, directories, hub datasets and the bundled set.

One module per kind of source yields raw records; `rows` checks them. To add a kind, write such a
module and name it in `_records`.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gad_jax.base.errors import UserError
from gad_jax.data.sources import hub, jsonl, parquet, text
from gad_jax.data.sources.rows import (
    Invalid,
    Record,
    Row,
    Rows,
    collected_key,
    is_unfinished,
    parse,
)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_BUNDLED = {"bundled": "train.jsonl", "bundled:heldout": "heldout.jsonl"}
_BUNDLED_DIRECTORY = Path(__file__).parent.parent / "bundled"


def read(
    name: str | Path,
    *,
    skip_invalid: bool = False,
    split: str = "train",
    need_response: bool = True,
    keep_unfinished: bool = False,
) -> Rows:
    """Returns the rows of a JSONL or Parquet file, a directory of them, a hub dataset, or bundled.

    A row holds a conversation that ends with the user, under `messages` or `content` (lists of
    {role, content}) or as a single user turn under `prompt`. `rows.py` lists the forms of other
    datasets. `teacher_response` is a text or a list of texts, and optional without `need_response`.
    Other columns are ignored. `split`, or the end of a name (`ORG/NAME:test`), picks a part of a
    hub dataset or the files of a directory; a single file is read whole. A `.txt` file has a prompt
    per line.

    Several collected responses to one prompt become one row. Responses that were cut, refused or
    empty are dropped and counted, unless `keep_unfinished`: then an empty one is malformed.

    Raises UserError for a malformed row, and for a second row with the same id in a file. With
    `skip_invalid` such rows are dropped and counted by reason.

        rows = read("train.jsonl")
        rows[0].messages[-1]["content"], rows[0].responses
    """
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    name, split = _with_split(str(name), split)
    seen: dict[str, dict[str, str]] = {}
    groups: dict[str, int] = {}
    unfinished = 0
    for where, record in records(name, split, need_response):
        if need_response and not keep_unfinished and is_unfinished(record):
            unfinished += 1
            continue
        try:
            row = parse(where, record, need_response)
            _check_id(row.id, where, seen)
            _add(rows, row, collected_key(record), groups)
        except Invalid as problem:
            if not skip_invalid:
                raise UserError(
                    f"{where}: {problem}; drop the row or pass --data.skip_invalid"
                ) from None
            skipped[problem.reason] += 1
    if not rows:
        raise _no_rows(name, skipped, unfinished)
    return Rows(str(name), tuple(rows), dict(skipped), skip_invalid, unfinished)


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
        rows[index] = dataclasses.replace(rows[index], responses=responses)
    else:
        rows.append(row)


def _check_id(id: str, where: str, seen: dict[str, dict[str, str]]) -> None:
    """Raises Invalid for an id that an earlier line has; `seen` is file → id → line."""
    if id == where:  # the record has no id
        return
    file, _, line = where.rpartition(":")
    first = seen.setdefault(file, {}).setdefault(id, line)
    if first != line:
        raise Invalid("the id is given twice", f": {id!r} is that of {file}:{first} too")


def _with_split(name: str, split: str) -> tuple[str, str]:
    """Returns the name and the split: the one at the end of the name, else the given one."""
    base, _, suffix = name.rpartition(":")
    if base and suffix.isidentifier() and (Path(base).is_dir() or _HUB_NAME.fullmatch(base)):
        return base, suffix
    return name, split


def records(name: str, split: str, need_response: bool) -> Iterator[Record]:
    """Yields the raw records of a file, directory, hub dataset or bundled set."""
    if name in _BUNDLED:
        yield from _file_records(_BUNDLED_DIRECTORY / _BUNDLED[name], need_response)
    elif Path(name).is_dir():
        for path in _files(Path(name), split):
            yield from _file_records(path, need_response)
    elif Path(name).is_file():
        yield from _file_records(Path(name), need_response)
    elif _HUB_NAME.fullmatch(name) and _suffix(Path(name)) is None:
        yield from hub.records(name, split)
    else:
        raise UserError(
            f"{name}: no such file; give a {', '.join(_SUFFIXES)} file or a directory of them, a "
            f"hub dataset ORG/NAME, or {' or '.join(_BUNDLED)}"
        )


def _files(directory: Path, split: str) -> list[Path]:
    """Returns the directory's data files in the order of their names.

    Where names begin with a split (train-00000-of-00002.parquet), only those of `split`.
    """
    paths = sorted(path for path in directory.iterdir() if _suffix(path) and path.is_file())
    if not paths:
        raise UserError(f"{directory}: no {', '.join(_SUFFIXES)} file in this directory; add one")
    begins = re.compile(r"(train|test|validation|valid|dev|eval|heldout)(?![^\W_])")
    splits = [match and match[1] for match in (begins.match(path.name) for path in paths)]
    if not any(splits):
        return paths
    chosen = [path for path, of in zip(paths, splits, strict=True) if of == split]
    if not chosen:
        raise UserError(
            f"{directory}: no file name begins with {split!r} (first file: {paths[0].name}); "
            "name one file"
        )
    return chosen


def _file_records(path: Path, need_response: bool) -> Iterator[Record]:
    suffix = _suffix(path)
    is_text = path.name.endswith(".txt") and not need_response
    if suffix is None and not is_text:
        raise UserError(
            f"{path}: unknown kind of file; give {', '.join(_SUFFIXES)} (JSONL has one JSON object "
            "per line)"
        )
    try:
        if suffix == ".parquet":
            yield from parquet.records(path, need_response)
        elif is_text:
            yield from text.records(path)
        else:
            yield from jsonl.records(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); check the file"
        ) from error


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)

"""CSV and TSV files with a line of names: one row at a time, UTF-8.

pyarrow's reader is faster, but it names no row, and takes a file with one bad row for broken.
"""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path

from gad_jax.base.errors import UserError
from gad_jax.data.sources import documents, jsonl, opening
from gad_jax.data.sources.rows import Invalid, Record

_DELIMITERS = ",;\t|"


def records(path: Path) -> Iterator[Record]:
    """Yields (file:row, object) for each row; the names are row 1, as in a spreadsheet."""
    csv.field_size_limit(jsonl.MAX_LINE_BYTES)
    with opening.stream(path) as file:
        if file.peek().lstrip().startswith((b'{"', b"[{")):  # JSON with the wrong ending
            yield from documents.records(path)
            return
        texts = _texts(path, jsonl.lines(file.readline))
        first = next(texts, "")
        delimiter = "\t" if ".tsv" in path.name else _delimiter(first)
        reader = csv.reader(itertools.chain([first], texts), delimiter=delimiter, strict=True)
        names = _names(path, reader)
        for number in itertools.count(2):
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"{path.name}:{number}", Invalid("not CSV", f" ({error})")
                continue
            if cells:
                yield f"{path.name}:{number}", _row(names, cells)


def _texts(path: Path, lines: Iterator[bytes | Invalid]) -> Iterator[str]:
    blank = 0
    for line in lines:
        if isinstance(line, Invalid):
            raise UserError(f"{path}: {line}; correct the file")
        blank = 0 if line.strip() else blank + 1
        if blank > jsonl.MAX_BLANK_LINES:
            raise UserError(f"{path}: more than {blank - 1} blank lines in a row; check the file")
        yield line.decode("utf-8", "surrogateescape")


def _delimiter(line: str) -> str:
    """Returns what separates the names; Excel writes semicolons in many countries."""

    def names(delimiter: str) -> int:
        try:
            return len(next(csv.reader([line], delimiter=delimiter), []))
        except csv.Error:  # `_names` says so
            return 0

    return max(_DELIMITERS, key=names)


def _names(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UserError(
            f"{path}: the line of names is no CSV ({error}); correct the file, or save it with the "
            "line ends of Windows or Unix if they are those of an old Macintosh"
        ) from error
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: two columns have the name {twice[0]!r}; rename one of them")
    return names


def _row(names: list[str], cells: list[str]) -> dict[str, str] | Invalid:
    if len(cells) != len(names):
        return Invalid(
            "not as many cells as names in the first row", f": {len(cells)}, not {len(names)}"
        )
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:  # what "surrogateescape" left
        return Invalid("not UTF-8")
    return dict(zip(names, cells, strict=True))

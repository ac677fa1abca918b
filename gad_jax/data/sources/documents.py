"""JSON files that are one value: an array of rows, or an object that holds one.

Rows are decoded one by one, so an array of any length is read in bounded memory. JSON Lines with
the wrong ending are handed on to `jsonl`.
"""

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.data.sources import jsonl, opening
from gad_jax.data.sources.rows import Invalid, Record

_TABLES = ("data", "rows", "examples", "instances", "samples", "records", "items", "entries")
_CHUNK_BYTES = 2**16
_MAX_COLUMNS_BYTES = 2**28
_MAX_OTHERS = 10_000  # a small compressed file may have billions
_BLANK = " \t\r\n"


def records(path: Path) -> Iterator[Record]:
    """Yields (file:row, object) for each row of a JSON file; those of JSON Lines go by lines."""
    with opening.stream(path) as file:
        if is_lines(file, path.name):
            yield from jsonl.records(path)
            return
        for number, row in enumerate(_rows(_Reader(path, file)), start=1):
            yield f"{path.name}:{number}", row


def is_lines(file: io.BufferedReader, name: str) -> bool:
    """Returns whether a file is JSON Lines, by its first line."""
    begin = file.peek().removeprefix(b"\xef\xbb\xbf").lstrip()
    first, newline, rest = begin.partition(b"\n")
    if begin.startswith(b"[") or first.strip() == b"{":
        return False
    if ".json" not in name or ".jsonl" in name:
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return not begin.startswith(b"{")
    return bool(newline and rest.strip())


class _Reader:
    """The values of a JSON text, decoded from a window that moves over it."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self._path = path
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder(parse_constant=self._note_constant)
        self._text = ""
        self._at = 0
        self._ended = False
        self._constant = ""
        self.rows = 0

    def _note_constant(self, constant: str) -> None:
        self._constant = constant

    def fail(self, why: str) -> UserError:
        """Returns the error for a text that is not JSON."""
        return UserError(
            f"{self._path.name}:{self.rows + 1}: not JSON ({why}); correct the file, or fetch it "
            "again"
        )

    def _fill(self) -> None:
        """Reads as much as the window holds, so that decoding anew takes linear time in all."""
        chunk = self._file.read(max(_CHUNK_BYTES, len(self._text) - self._at))
        self._ended = not chunk
        try:
            more = self._decode.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            raise self.fail("not UTF-8") from error
        self._text, self._at = self._text[self._at :] + more, 0

    def peek(self) -> str:
        """Returns the next character that is not blank; an empty text at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._fill()

    def take(self, wanted: str) -> str:
        """Returns the next character and moves past it; raises UserError for another one."""
        found = self.peek()
        if not found or found not in wanted:
            shown = repr(found) if found else "the end of the file"
            raise self.fail(f"{shown} in place of {' or '.join(map(repr, wanted))}")
        self._at += 1
        return found

    def value(self, limit: int = jsonl.MAX_LINE_BYTES) -> Any:
        """Returns the next value, Invalid for one that is no JSON but whose end is known."""
        self.peek()
        while True:
            self._constant = ""
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - 16
                if self._ended or not cut:
                    raise self.fail(error.msg) from error
            except RecursionError as error:
                raise self.fail("nested too deeply") from error
            except ValueError as error:  # of int(): thousands of digits
                raise self.fail("a number has too many digits") from error
            else:
                if end < len(self._text) or self._ended:
                    self._at = end
                    if self._constant:
                        return Invalid("not JSON", f" ({self._constant} is not a JSON value)")
                    return found
            if len(self._text) - self._at > limit:
                raise self.fail(f"a row is longer than {limit >> 20} MiB")
            self._fill()


def _rows(reader: _Reader) -> Iterator[Any]:
    if reader.peek() == "[":
        yield from _array(reader)
        if reader.peek():
            raise reader.fail("more text behind the end of the array")
    while reader.peek():
        if reader.peek() == "{":
            yield from _object(reader)
        else:
            yield reader.value()
            reader.rows += 1


def _array(reader: _Reader) -> Iterator[Any]:
    reader.take("[")
    if reader.peek() == "]":
        reader.take("]")
        return
    others = 0
    while True:
        row = reader.value()
        others = 0 if isinstance(row, dict) else others + 1
        if others > _MAX_OTHERS:
            raise reader.fail(f"{others} values in a row that are no objects")
        yield row["row"] if _is_numbered(row) else row
        reader.rows += 1
        if reader.take(",]") == "]":
            return


def _is_numbered(row: Any) -> bool:
    """Returns whether a row is in the form of the hub's viewer."""
    return isinstance(row, dict) and {"row_idx", "row"} <= set(row)


def _object(reader: _Reader) -> Iterator[Any]:
    """Yields the rows of an object: of the array in it, of its columns, or the object itself."""
    held: dict[str, Any] = {}
    before = reader.rows
    end = reader.take("{") if reader.peek() == "{" else ""
    if reader.peek() == "}":
        end = reader.take("}")
    while end != "}":
        key = reader.value()
        if not isinstance(key, str):
            raise reader.fail("a name in an object is no text")
        reader.take(":")
        if key in _TABLES and reader.peek() == "[":
            found = []
            for row in _array(reader):
                if isinstance(row, dict | Invalid):
                    yield row
                else:
                    found.append(row)
            held[key] = found
        else:
            held[key] = reader.value(_MAX_COLUMNS_BYTES)
        end = reader.take(",}")
    if reader.rows > before and not any(held.get(name) for name in _TABLES):
        return
    broken = [value for value in held.values() if isinstance(value, Invalid)]
    for row in broken[:1] or _from_columns(held) or [held]:
        yield row
        reader.rows += 1


def _from_columns(held: dict[str, Any]) -> list[Any]:
    """Returns the rows of an object of columns, as pandas and `datasets` write them; else none."""
    columns = list(held.values())
    if {"columns", "data"} <= set(held):
        names, data = held["columns"], held["data"]
        if isinstance(names, list) and all(isinstance(row, list) for row in data):
            return [dict(zip(names, row, strict=False)) for row in data]
    if columns and all(isinstance(column, dict) for column in columns):
        names = list(columns[0])
        if names and all(list(column) == names for column in columns) and len(columns) > 1:
            return [{key: held[key][name] for key in held} for name in names]
    if not columns or not all(isinstance(column, list) for column in columns):
        return []
    same = {len(column) for column in columns} == {len(columns[0])}
    plain = ("turns", "questions")  # whose lists are a conversation
    if not same or any(name in held for name in plain) or len(columns[0]) == 0:
        return []
    inner = columns[0][0]
    messages = isinstance(inner, dict) and {"role", "from"} & set(inner)
    if messages or (len(columns) == 1 and not isinstance(inner, list)):
        return []
    return [dict(zip(held, values, strict=True)) for values in zip(*columns, strict=True)]

"""The columns of a record by name, and values by a path such as `response.body.text`."""

import ast
import functools
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from gad_jax.data.sources.rows import Invalid, is_blank, shortened


class Fields(NamedTuple):
    """Where prompt and response are, as given by flags; empty: known by the columns' names.

    `rejected` is where the rejected answers are; empty: they are not read.
    """

    prompt: str = ""
    response: str = ""
    rejected: str = ""


BY_NAME = Fields()
"""Prompt and response are found by the names of the columns."""

_SHOWN = 16


@functools.cache
def fold(name: str) -> str:
    """Returns a column's name as the formats spell it: `Teacher Response` → `teacher_response`."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


class Columns:
    """The columns of a record that are not null, under their folded names.

    `used` are those that were taken, in order; `repeated` say what a used one says once more.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.values: dict[str, Any] = {}
        self.used: dict[str, None] = {}
        self.repeated: set[str] = set()
        for name, value in record.items():
            folded = fold(str(name))
            if value is not None and (folded == name or folded not in self.values):
                self.values[folded] = value

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def take(self, name: str) -> Any:
        """Returns the value of a column and counts it as used; None if it is not there."""
        if name in self.values:
            self.used[name] = None
        return self.values.get(name)

    def filled(self, names: Iterable[str]) -> list[str]:
        """Returns those of the names whose column says something."""
        values = self.values
        return [name for name in names if name in values and not is_blank(values[name])]


def shown(record: Any) -> str:
    """Returns the names of a record's columns, for a sentence."""
    names = [str(name) for name in record] if isinstance(record, dict) else []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shortened(name)[1:-1] for name in names[:_SHOWN]) + more


def find(record: dict[str, Any], path: str, flag: str) -> Any:
    """Returns the value at a path of names with dots; raises Invalid where there is none.

    A name with dots in it is found too. A number picks an item of a list, a name is looked up in
    each of its items: `choices.0.text`, `answers.text`. Text that is JSON is read as such.
    """
    found = _find(record, path)
    if found is None:
        raise Invalid(f"no {path!r}, which {flag} names", columns=True)
    return found


def _find(value: Any, path: str) -> Any:
    if not path:
        return value
    value = from_json(value)
    if isinstance(value, list):
        head, _, rest = path.partition(".")
        if head.isdecimal():
            return _find(value[int(head)], rest) if int(head) < len(value) else None
        found = [_find(item, path) for item in value]
        return None if not found or None in found else found
    if not isinstance(value, dict):
        return None
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:count]), ".".join(parts[count:])
        held = value.get(head)
        found = None if held is None else _find(held, rest)
        if found is not None:
            return found
    return None


def from_json(value: Any) -> Any:
    """Returns the list or object that a text spells, as in cells of CSV; else the value itself.

    Python's own spelling is read too: that is what pandas writes into a CSV file.
    """
    if not isinstance(value, str) or not re.match(r"\s*(\[\s*[{\[\"']|\{\s*[\"'])", value):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list | dict) else value
    return value

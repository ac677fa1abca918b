"""The file of the questions without a response, and why: `answers.failed.jsonl`.

A line is `{"key", "sample", "prompt_id", "reason", "final", "time"}`. `final` means that the server
refused this prompt: its answer was asked for and will not come, so the next run does not ask.
"""

import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gad_jax.base import files, jsonl
from gad_jax.base.redaction import redact
from gad_jax.teacher.questions import Question

Name = tuple[str, int]
"""A question's key and sample."""


class Failures:
    """The file while a run asks; absent if there is nothing to list.

    Refusals of earlier runs stay in it, except for the questions that are `asked` now.
    """

    def __init__(self, path: Path, asked: Iterable[Question] = ()) -> None:
        self.path = path
        self.last = ""
        """Why the last question that was added has no response."""
        names = {(question.key, question.sample) for question in asked}
        self._rows = {name: row for name, row in _read(path).items() if name not in names}
        self._save()

    def _save(self) -> None:
        if self._rows:
            files.write_atomic(self.path, b"".join(map(jsonl.encode, self._rows.values())))
        else:
            self.path.unlink(missing_ok=True)

    def add(self, question: Question, reason: str, final: bool = False) -> None:
        """Adds a question. The next run asks again, unless the refusal is final."""
        self.last = redact(reason)
        row = {
            "key": question.key,
            "sample": question.sample,
            "prompt_id": question.row,
            "reason": self.last,
            "final": final,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self._rows[question.key, question.sample] = row
        with jsonl.Appender(self.path, sync=False) as file:
            file.append([row])

    def reopen(self, questions: Iterable[Question]) -> None:
        """Has the next run ask these questions again: their refusals were not about them."""
        for question in questions:
            self._rows[question.key, question.sample]["final"] = False
        self._save()


def refused(path: Path) -> set[Name]:
    """Returns the questions that earlier runs found refused for good."""
    return set(_read(path))


def _read(path: Path) -> dict[Name, dict[str, Any]]:
    """Returns the final rows of a file, none where there is no file."""
    if not path.exists():
        return {}
    found = {}
    for line in jsonl.read_lines(path):
        try:
            row = json.loads(line)
            name = (row["key"], row["sample"])
            if row["final"] is True:
                found[name] = row
            else:
                found.pop(name, None)
        except (ValueError, KeyError, TypeError):
            continue  # a line that is not ours costs at most one question
    return found

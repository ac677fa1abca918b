"""Answers to a prompt set, one file per student: written as they come, read back by reports.

`training.report.answers` says what a line is. NAME.json next to a file has the settings that made
it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gad_jax.base import files, jsonl
from gad_jax.base.errors import UserError
from gad_jax.data.sources.rows import Row, conversation_text
from gad_jax.training.report.answers import Answers, Line

_BEFORE = {"chat_template_kwargs": ""}
"""Settings that older files do not name, and what they were."""


class AnswerFile:
    """A file of answers to `rows`, which a later run can resume.

    `about` are the settings that an answer depends on. Raises UserError if the file was made with
    other settings, or for other prompts.
    """

    def __init__(self, path: Path, rows: list[Row], about: dict[str, Any]):
        self.path, self.rows = path, rows
        self.about_path = path.with_suffix(".json")
        self.about = about
        self.lines: list[Line] = []
        if self.about_path.exists():
            self._check(_about(self.about_path))
            self.lines = self._read()
        elif path.exists():
            raise UserError(
                f"{path} is there, but not {self.about_path.name}, which says what made it; delete "
                "it or choose another --out"
            )

    @property
    def complete(self) -> bool:
        """Whether every row has a line."""
        return len(self.lines) >= len(self.rows)

    @property
    def origin(self) -> str:
        """The weights that gave the answers; empty before the first answer."""
        return self.about.get("origin", "")

    def begin(self, origin: str, scored_by: str = "") -> None:
        """Sets the weights of the answers that follow, and of the discriminator that scores them.
        Raises UserError if the earlier ones come from other weights."""
        found = (("origin", "answers of", origin), ("scored_by", "scores of", scored_by))
        for name, what, now in found:
            before = self.about.get(name, now)
            if self.lines and before != now:
                raise UserError(
                    f"{self.path} holds {what} {before} and would continue with {now}; delete the "
                    "file or choose another --out"
                )
            self.about[name] = now
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(self.about_path, json.dumps(self.about, indent=1) + "\n")

    def append(self, lines: list[Line]) -> None:
        """Adds lines. When this returns, they survive a crash."""
        with jsonl.Appender(self.path) as file:
            file.append(lines)
        self.lines += lines

    def answers(self) -> Answers:
        """Returns the answers to the rows, as far as they have come."""
        lines = tuple(self.lines[: len(self.rows)])
        return Answers(self.about["label"], self.about["prompts"], self.origin, lines)

    def _check(self, found: dict[str, Any]) -> None:
        changed = [
            f"{name}: {found.get(name, _BEFORE.get(name))} → {value}"
            for name, value in self.about.items()
            if found.get(name, _BEFORE.get(name)) != value
        ]
        if changed:
            raise UserError(
                f"{self.path} holds answers that were made with other settings "
                f"({', '.join(changed)}); delete it or choose another --out"
            )
        self.about = found

    def _read(self) -> list[Line]:
        """Returns the lines; a torn last line is left out."""
        if not self.path.exists():
            return []
        lines = _read_lines(self.path)
        for line, row in zip(lines, self.rows, strict=False):
            if (line["id"], line["prompt"]) != (row.id, conversation_text(row.messages)):
                raise UserError(
                    f"{self.path} holds answers to other prompts, the first of them at "
                    f"{row.id}; delete it or choose another --out"
                )
        return lines


def from_directory(directory: Path) -> list[Answers]:
    """Returns the answers that gad_jax.evaluate has written in a directory so far.

    Sets are in the order of their names, students in the order in which they began.
    """
    found = []
    for path in sorted(directory.glob("*/*.jsonl"), key=_begun):
        about_path = path.with_suffix(".json")
        if about_path.exists():
            about = _about(about_path)
            found.append(
                Answers(
                    str(about.get("label", path.stem)),
                    str(about.get("prompts", path.parent.name)),
                    str(about.get("origin", "")),
                    tuple(_read_lines(path)),
                )
            )
    return found


def _about(path: Path) -> dict[str, Any]:
    """Returns the settings that made a file of answers."""
    files.need_regular(path)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{path} is no JSON object; delete it and the file of answers next to it")
    return about


_FORM = {"id": str, "prompt": str, "teacher": str | None, "teacher_tokens": int | None}
_ANSWER = {"text": str, "tokens": int}


def _read_lines(path: Path) -> list[Line]:
    """Returns the lines of a file of answers; a torn last line is left out."""
    lines = []
    for number, raw in enumerate(jsonl.read_lines(path), start=1):
        if not raw:
            continue
        line, whole = None, False
        try:
            line = json.loads(raw)
            whole = _has(line, _FORM) and all(_has(one, _ANSWER) for one in line["answers"])
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if line is None or not whole:
            raise UserError(f"{path}:{number}: no JSON, or not a line of answers; delete the file")
        lines.append(line)
    return lines


def _has(value: Any, form: Mapping[str, Any]) -> bool:
    return isinstance(value, dict) and all(
        name in value and isinstance(value[name], kind) for name, kind in form.items()
    )


def _begun(path: Path) -> tuple[str, float, str]:
    about = path.with_suffix(".json")
    return path.parent.name, about.stat().st_mtime if about.exists() else 0.0, path.name

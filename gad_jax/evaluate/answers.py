"""Answers to a prompt set, one file per student: written as they come, read back by reports.

A line is a prompt with the teacher's answer and the student's, in the order of the set:
`{"id", "prompt", "teacher", "teacher_tokens", "answers": [{"text", "tokens", "finished", …}]}`. An
answer may also have its overlap with the teacher's and the discriminator's `score`. Texts, token
counts and measures are those of answers without thoughts, which stand apart in `thoughts`. A
prompt that was too long has no answers. NAME.json next to it has the settings that made the file.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gad_jax.base import files, jsonl
from gad_jax.base.errors import UserError, first_line
from gad_jax.data.sources.rows import Row
from gad_jax.metrics import heldout, overlap

Line = dict[str, Any]

_BEFORE = {"chat_template_kwargs": ""}
"""Settings that older files do not name, and what they were."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """A student's answers to a prompt set; `origin` names the weights."""

    label: str
    prompts: str
    origin: str
    lines: tuple[Line, ...]


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

    def begin(self, origin: str) -> None:
        """Sets the weights of the answers that follow. Raises UserError if the earlier answers come
        from other weights."""
        if self.lines and self.origin != origin:
            raise UserError(
                f"{self.path} holds answers of {self.origin} and would continue with {origin}; "
                "delete the file or choose another --out"
            )
        self.about["origin"] = origin
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
            if (line["id"], line["prompt"]) != (row.id, shown_prompt(row)):
                raise UserError(
                    f"{self.path} holds answers to other prompts, the first of them at "
                    f"{row.id}; delete it or choose another --out"
                )
        return lines


def shown_prompt(row: Row) -> str:
    """Returns a row's conversation as one text, with the role before each message but the last."""
    *earlier, last = row.messages
    return "\n\n".join([*(f"{m['role']}: {m['content']}" for m in earlier), last["content"]])


def from_run(run: Path) -> list[Answers]:
    """Returns a run's evaluations at the starts and ends of its stages, in order."""
    results = evaluations(run)
    order = {"before": -1}
    results.sort(key=lambda result: (result.step, order.get(result.label, 0)))
    ends = [r for r in results if not r.label.startswith("step ")] or results
    return [
        Answers(result.label, "held-out prompts", f"{run}, step {result.step}", _lines(result))
        for result in ends
    ]


def evaluations(run: Path) -> list[heldout.HeldoutResult]:
    """Returns a run's evaluations in any order. Raises UserError for a damaged file."""
    return [_evaluation(path) for path in sorted((run / "evaluations").glob("*.json"))]


def _evaluation(path: Path) -> heldout.HeldoutResult:
    files.need_regular(path)
    found = heldout.read(path)
    try:
        _lines(found)  # all that is used of it
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a whole evaluation ({first_line(error, with_class=True)}); remove it, "
            "and the same run makes it again"
        ) from error


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


def _lines(result: heldout.HeldoutResult) -> tuple[Line, ...]:
    return tuple(
        {
            "id": str(number),
            "prompt": example["prompt"],
            "teacher": example["teacher"],
            "teacher_tokens": example.get("teacher_length"),
            "answers": [
                {
                    "text": example["student"],
                    "tokens": example["length"],
                    "finished": example["finished"],
                    **overlap.scores(example["teacher"], example["student"]),
                }
            ],
        }
        for number, example in enumerate(result.examples)
    )


def common(several: list[Answers]) -> list[Answers]:
    """Returns the answers to the prompts that all students answered."""
    shared = set.intersection(
        *({i for i, x in enumerate(a.lines) if x["answers"]} for a in several)
    )
    return [
        dataclasses.replace(a, lines=tuple(a.lines[index] for index in sorted(shared)))
        for a in several
    ]


def mean(answers: Answers, name: str) -> float | None:
    """Returns the mean of a measure over prompts; None if no prompt has it."""
    values = [value for line in answers.lines if (value := of_line(line, name)) is not None]
    return float(np.mean(values)) if values else None


def of_line(line: Line, name: str) -> float | None:
    """Returns the mean of a measure over a prompt's answers; None if they do not have it."""
    values = [answer[name] for answer in line["answers"] if answer.get(name) is not None]
    return float(np.mean(values)) if values else None


def summary(answers: Answers) -> dict[str, float]:
    """Returns the means for a table. Lengths come first: no score is fair without them."""
    found = {"tokens": mean(answers, "tokens")}
    known = [line for line in answers.lines if line["teacher_tokens"]]
    if known and len(known) == len(answers.lines):
        teacher = float(np.mean([line["teacher_tokens"] for line in known]))
        found["× teacher"] = (found["tokens"] or 0.0) / teacher
    finished = mean(answers, "finished")
    found["cut"] = None if finished is None else 1 - finished
    found["D score"] = mean(answers, "score")
    found["ROUGE-L"] = mean(answers, "rouge_l")
    for n in overlap.ORDERS:
        found[f"{n}-gram"] = mean(answers, f"ngram_{n}")
    return {name: value for name, value in found.items() if value is not None}

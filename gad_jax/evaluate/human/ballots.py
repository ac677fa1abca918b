"""Pairs of answers to vote on, and the file of votes: one line each, on the disk before it counts.

A line is `{"ballot", "annotator", "prompts", "id", "students", "left", "choice", "winner",
"seconds", "time"}`. If an annotator votes twice on a ballot, the last vote counts. `ballot` is a
hash of the pair's content: new answers are a new ballot, and old votes do not count for it.
"""

import dataclasses
import datetime
import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from gad_jax.base import files, jsonl
from gad_jax.base.errors import StorageError, UserError
from gad_jax.training.report.answers import Answers

Choice = Literal["left", "tie", "right"]
CHOICES: tuple[Choice, ...] = ("left", "tie", "right")
TEACHER = "teacher"

Vote = dict[str, Any]
_STRINGS = ("ballot", "annotator", "winner", "left")


@dataclasses.dataclass(frozen=True)
class Side:
    """An answer: whose it is, its text, and its token count where it is known."""

    student: str
    text: str
    tokens: int | None


@dataclasses.dataclass(frozen=True)
class Ballot:
    """Two answers to a prompt."""

    key: str
    prompts: str
    id: str
    prompt: str
    sides: tuple[Side, Side]

    def shown(self, annotator: str, seed: int) -> tuple[Side, Side]:
        """Returns the left and the right answer: random, but the same in every call."""
        first, second = self.sides
        return (second, first) if _draw(self.key, annotator, seed, "order") & 1 else (first, second)


def ballots(answers: Sequence[Answers], students: Sequence[str]) -> list[Ballot]:
    """Returns the pairs of two students' (or the teacher's) first answers to one prompt set."""
    names = [one.label for one in answers]
    for name in students:
        if name not in (*names, TEACHER):
            raise UserError(
                f"--students: {name} has no answers to {answers[0].prompts}; name two of "
                f"{', '.join([*names, TEACHER])}"
            )
    found = []
    for number, line in enumerate(answers[0].lines):
        first, second = (_side(answers, name, number) for name in students)
        if first is not None and second is not None:
            content = json.dumps([line["prompt"], first.text, second.text, *students])
            key = hashlib.sha256(content.encode()).hexdigest()[:32]
            found.append(
                Ballot(key, answers[0].prompts, line["id"], line["prompt"], (first, second))
            )
    return found


def _side(group: Sequence[Answers], name: str, number: int) -> Side | None:
    if name == TEACHER:
        line = group[0].lines[number]
        return Side(name, line["teacher"], line["teacher_tokens"]) if line["teacher"] else None
    (one,) = (one for one in group if one.label == name)
    answer = one.lines[number]["answers"][0]
    return Side(name, answer["text"], answer["tokens"])


def same(ballot: Ballot) -> bool:
    """Returns whether both answers are the same text."""
    first, second = ballot.sides
    return first.text.strip() == second.text.strip()


def order(several: Sequence[Ballot], annotator: str, seed: int) -> list[Ballot]:
    """Returns the ballots in the order in which an annotator sees them."""
    return sorted(several, key=lambda ballot: _draw(ballot.key, annotator, seed, "turn"))


def _draw(key: str, annotator: str, seed: int, use: str) -> int:
    content = json.dumps([key, annotator, seed, use])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")


class Votes:
    """The file of votes; the caller holds its lock. Opening it cuts off a torn last line, unless
    `read_only`, which needs no lock.

    `broken` are the numbers of other lines that are no votes, which do not count. Raises UserError
    where the first line is none: then the file is not one of votes.
    """

    def __init__(self, path: Path, read_only: bool = False):
        self.path = path
        self._writing = threading.Lock()
        raw = jsonl.read_lines(path) if path.exists() else []
        parsed = [_parse(line) for line in raw]
        if parsed and parsed[0] is None:
            raise UserError(f"{path}:1: not a vote; give another --votes, or delete that line")
        self.lines = [vote for vote in parsed if vote is not None]
        self.broken = [number for number, vote in enumerate(parsed, start=1) if vote is None]
        if path.exists() and not read_only:
            jsonl.cut_torn_line(path)

    def add(
        self, ballot: Ballot, annotator: str, choice: Choice, seed: int, seconds: float
    ) -> None:
        """Stores a vote. When this returns, the vote survives a crash.

        Raises StorageError if it could not be stored; the file is then unchanged.
        """
        left, right = ballot.shown(annotator, seed)
        winner = {"left": left.student, "right": right.student, "tie": "tie"}[choice]
        vote = {
            "ballot": ballot.key,
            "annotator": annotator,
            "prompts": ballot.prompts,
            "id": ballot.id,
            "students": [side.student for side in ballot.sides],
            "left": left.student,
            "choice": choice,
            "winner": winner,
            "seconds": round(seconds, 1),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        }
        with self._writing:
            try:
                with jsonl.Appender(self.path) as file:
                    file.append([vote])
                files.hold(self.path)  # which may be new
            except OSError as error:
                raise StorageError(f"the vote could not be kept in {self.path}: {error}") from error
            self.lines.append(vote)

    def of(self, annotator: str) -> dict[str, Vote]:
        """Returns the votes of an annotator that count, by ballot, the latest last."""
        found: dict[str, Vote] = {}
        for vote in list(self.lines):
            if vote["annotator"] == annotator:
                found.pop(vote["ballot"], None)
                found[vote["ballot"]] = vote
        return found

    def annotators(self) -> list[str]:
        """Returns the annotators, in the order of their first votes."""
        return list(dict.fromkeys(vote["annotator"] for vote in list(self.lines)))


def _parse(raw: bytes) -> Vote | None:
    """Returns a vote, None for any other line."""
    try:
        vote = json.loads(raw)
        students = vote.get("students", [])
    except (ValueError, AttributeError, RecursionError):
        return None
    named = isinstance(students, list) and all(isinstance(name, str) for name in students)
    texts = all(isinstance(vote.get(name), str) for name in _STRINGS)
    return vote if named and texts and vote.get("choice") in CHOICES else None

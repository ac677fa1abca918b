"""Pairs of answers to vote on, and the file of votes: one line each, on the disk before it counts.

A line is `{"ballot", "annotator", "prompts", "id", "students", "left", "choice", "winner",
"seconds", "time"}`; of several by one annotator on one ballot the last counts. `ballot` names the
pair by its content, so new answers are a new ballot and old votes are not taken for theirs.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from gad_jax.base.errors import StorageError, UserError
from gad_jax.evaluate.answers import Answers

Choice = Literal["left", "tie", "right"]
CHOICES: tuple[Choice, ...] = ("left", "tie", "right")
TEACHER = "teacher"

Vote = dict[str, Any]
_STRINGS = ("ballot", "annotator", "winner", "left")


@dataclasses.dataclass(frozen=True)
class Side:
    """Whose answer it is, its text, and its length where it is known."""

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
        """Returns the left and the right answer: by chance, but the same whenever it is asked."""
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
    """The file of votes; the caller holds its lock. A torn last line is cut off when it is opened;
    `read_only` leaves the file alone, and needs no lock.

    Raises UserError for any other line that is no vote.
    """

    def __init__(self, path: Path, read_only: bool = False):
        self.path = path
        self._writing = threading.Lock()
        whole = path.read_bytes() if path.exists() else b""
        kept = whole[: whole.rfind(b"\n") + 1]
        self.lines = [
            _parse(raw, path, number) for number, raw in enumerate(kept.splitlines(), start=1)
        ]
        if kept != whole and not read_only:
            os.truncate(path, len(kept))

    def add(
        self, ballot: Ballot, annotator: str, choice: Choice, seed: int, seconds: float
    ) -> None:
        """Keeps a vote; when this returns, a crash does not lose it.

        Raises StorageError when it could not be kept; the file is then as it was.
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
            self._append((json.dumps(vote, ensure_ascii=False) + "\n").encode())
            self.lines.append(vote)

    def _append(self, line: bytes) -> None:
        try:
            with open(self.path, "ab", buffering=0) as file:
                size = file.tell()
                try:
                    if file.write(line) != len(line):
                        raise OSError("only a part could be written")
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, size)
                    raise
        except OSError as error:
            raise StorageError(f"the vote could not be kept in {self.path}: {error}") from error

    def of(self, annotator: str) -> dict[str, Vote]:
        """Returns an annotator's votes that count by ballot, the latest last."""
        found: dict[str, Vote] = {}
        for vote in list(self.lines):
            if vote["annotator"] == annotator:
                found.pop(vote["ballot"], None)
                found[vote["ballot"]] = vote
        return found

    def annotators(self) -> list[str]:
        """Returns who has voted, in the order of their first votes."""
        return list(dict.fromkeys(vote["annotator"] for vote in list(self.lines)))


def _parse(raw: bytes, path: Path, number: int) -> Vote:
    try:
        vote = json.loads(raw)
        if all(isinstance(vote[name], str) for name in _STRINGS):
            return vote
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path}:{number}: not a vote; give another --votes, or delete that line")

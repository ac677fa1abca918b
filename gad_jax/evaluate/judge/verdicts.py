"""The judge's verdicts on contests: each one is paid once, and stored before it counts.

Verdicts are collected like a teacher's responses (`gad_jax.teacher`), in a file whose lines are
named by the content of the request. So a crash, a rerun or another student pays for none again.
Verdicts that cannot be read are requested again, a bounded number of times in each run.
"""

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gad_jax.base import files, verbosity
from gad_jax.base.errors import UserError
from gad_jax.evaluate.judge.contests import (
    Contest,
    Judgement,
    Said,
    Texts,
    judgement,
    reply_key,
    scores,
)
from gad_jax.evaluate.judge.reading import Unreadable, Verdicts
from gad_jax.evaluate.judge.settings import Judge
from gad_jax.metrics.judging.protocol import excerpt
from gad_jax.teacher import collection, store
from gad_jax.teacher.collection import Service
from gad_jax.teacher.questions import Question, Teacher


def judge(contests: Sequence[Contest], settings: Judge, directory: Path) -> list[Judgement]:
    """Returns the judgements of all contests, after requesting the verdicts that are missing.

    Writes verdicts.jsonl, judgements.jsonl (a line per contest) and judge.json (the scores) in
    `directory`. A stop request or a spent budget ends the requests. What is missing then is
    counted, and the next run requests it.

    Raises UserError when too many verdicts in a row cannot be read.
    """
    path = directory / "verdicts.jsonl"
    try:
        service = Service.of(settings)
    except ValueError as error:
        raise UserError(f"--judge.{error}") from None
    model = Teacher(settings.model, "", settings.sampling)
    directory.mkdir(parents=True, exist_ok=True)
    with files.lock_file(path, "--out"):
        asking = _Asking(service, model, contests, settings, path)
        if settings.dry_run:
            _, first = asking.missing(0)
            collection.dry_run(path, first, service.terms, tokenizer="")
        else:
            asking.run()
        texts = read(path)
    found = [judgement(contest, model, texts) for contest in contests]
    if not settings.dry_run:
        _write(found, directory)
    return found


def read(path: Path) -> Texts:
    """Returns the replies in a file of verdicts."""
    found: dict[str, list[Said]] = {}
    for line in store.read_lines(path):
        said = Said(str(line.get("teacher_response", "")), line["finish_reason"])
        teacher = Teacher(line.get("teacher", ""), "", line.get("parameters") or {})
        key = reply_key(teacher, tuple(line["messages"]))
        found.setdefault(key, []).append(said)
    return found


@dataclasses.dataclass
class _Asking:
    """The requests of one run. `began` counts the replies that each question had before it."""

    service: Service
    model: Teacher
    contests: Sequence[Contest]
    settings: Judge
    path: Path
    _proven: bool = False

    def run(self) -> None:
        """Requests what has no verdict, then what cannot be read. A question that had replies
        before this run is asked at least once more: the judge may have been mended."""
        for repeat in range(self.settings.repeats + 1):
            known, missing = self.missing(repeat)
            new = [one for one in missing if one.sample == 0]
            again = [one for one in missing if one.sample > 0]
            self._proven = self._proven or known
            for questions in (new, again):
                if questions and not self._collect(questions):
                    return

    def missing(self, repeat: int) -> tuple[bool, list[Question]]:
        """Returns whether any verdict can be read, and the questions of a round: in the first all
        without one, later those whose replies so far cannot be read and are few enough."""
        texts = read(self.path)
        readable = False
        found: dict[str, Question] = {}
        for contest in self.contests:
            shares = judgement(contest, self.model, texts).shares
            readable = readable or any(share is not None for share in shares)
            for question, share in zip(contest.questions(self.model), shares, strict=True):
                replies = len(texts.get(reply_key(self.model, question.sent), ()))
                due = repeat == 0 or 1 <= replies <= self.settings.repeats
                if share is None and due:
                    found[question.key] = dataclasses.replace(question, sample=replies)
        return readable, sorted(found.values(), key=lambda one: one.sample > 0)

    def _collect(self, questions: list[Question]) -> bool:
        """Requests verdicts; returns whether neither the user, nor the budget, nor replies that
        cannot be read stopped that."""
        retry = questions[0].sample > 0
        retried = ", a retry: the last ones could not be read" if retry else ""
        verbosity.say(f"asking {self.model.model} for {len(questions)} verdicts{retried}")
        started = time.monotonic()
        verdicts = Verdicts.open(self.path)
        verdicts.watch(self.contests, self.model, self._proven)
        try:
            requests = asyncio.run(
                collection.collect(self.service, self.model, verdicts, questions)
            )
        except Unreadable as error:
            if not retry or not verdicts.proven:
                raise UserError(self._unreadable(verdicts)) from error
            print(f"{verdicts.in_a_row} retries in a row could not be read; no more in this run")
            return False
        finally:
            verdicts.close()
        self._proven = verdicts.proven
        collection.report(requests, len(questions), time.monotonic() - started)
        if verdicts.unread:
            print(
                f"{verdicts.unread} of these verdicts could not be read, such as "
                f"{excerpt(*verdicts.last)}"
            )
        return requests.ended == "done"

    def _unreadable(self, verdicts: Verdicts) -> str:
        reasons = Counter(said.finish_reason for said in verdicts.replies)
        cut = max(reasons, key=lambda one: reasons[one], default="") == "length"
        advice = (
            "it was cut, so raise --judge.max_new_tokens"
            if cut
            else "a verdict is read from one line that has nothing else, so correct the judge"
        )
        return (
            f"{self.model.model}: {verdicts.in_a_row} verdicts in a row could not be read, the "
            f"last one {excerpt(*verdicts.last)}; {advice} or give another --judge.model, and the "
            "same command asks for these again"
        )


def _write(found: Sequence[Judgement], directory: Path) -> None:
    lines = "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in found)
    files.write_atomic(directory / "judgements.jsonl", lines)
    table = [score.to_json() for score in scores(found)]
    files.write_atomic(directory / "judge.json", json.dumps(table, indent=1) + "\n")

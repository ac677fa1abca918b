"""The judge's verdicts on contests: each one is paid once, and stored before it counts.

Verdicts are collected like a teacher's responses (`gad_jax.teacher`), in a file whose lines are
named by the content of the request. So a crash, a rerun or another student pays for none again.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

from gad_jax.base import files
from gad_jax.base.errors import UserError
from gad_jax.evaluate.judge.contests import Contest, Judgement, Texts, judgement, scores
from gad_jax.evaluate.judge.settings import Judge
from gad_jax.teacher import collection
from gad_jax.teacher.collection import Service
from gad_jax.teacher.questions import Question, Teacher
from gad_jax.teacher.store import Store, read_responses


def judge(contests: Sequence[Contest], settings: Judge, directory: Path) -> list[Judgement]:
    """Returns the judgements of all contests, after requesting the verdicts that are missing.

    Writes verdicts.jsonl, judgements.jsonl (a line per contest) and judge.json (the scores) in
    `directory`. A stop request or a spent budget ends the requests. What is missing then is
    counted, and the next run requests it.
    """
    path = directory / "verdicts.jsonl"
    try:
        service = Service.of(settings)
    except ValueError as error:
        raise UserError(f"--judge.{error}") from None
    model = Teacher(settings.model, "", settings.sampling)
    directory.mkdir(parents=True, exist_ok=True)
    with files.lock_file(path, "--out"):
        for repeat in range(settings.repeats + 1):
            texts = read_responses(path)
            missing = _missing(contests, model, texts, repeat)
            if settings.dry_run:
                collection.dry_run(path, missing, service.terms, tokenizer="")
                break
            if missing and not _collect(service, model, missing, path, repeat):
                break
        texts = read_responses(path)
    found = [judgement(contest, model, texts) for contest in contests]
    if not settings.dry_run:
        _write(found, directory)
    return found


def _missing(
    contests: Sequence[Contest], judge: Teacher, texts: Texts, repeat: int
) -> list[Question]:
    """Returns the questions of this round: first those without a verdict, in later rounds those
    whose verdicts so far cannot be read."""
    found: dict[str, Question] = {}
    for contest in contests:
        shares = judgement(contest, judge, texts).shares
        for question, share in zip(contest.questions(judge, repeat), shares, strict=True):
            before = all((question.key, number) in texts for number in range(repeat))
            if share is None and before and (question.key, repeat) not in texts:
                found[question.key] = question
    return list(found.values())


def _collect(
    service: Service, judge: Teacher, missing: list[Question], path: Path, repeat: int
) -> bool:
    """Requests verdicts; returns whether neither the user nor the budget stopped that."""
    retried = ", a retry: the last ones could not be read" if repeat else ""
    print(f"asking {judge.model} for {len(missing)} verdicts{retried}", flush=True)
    started = time.monotonic()
    store = Store.open(path)
    try:
        requests = asyncio.run(collection.collect(service, judge, store, missing))
    finally:
        store.close()
    collection.report(requests, len(missing), time.monotonic() - started)
    return requests.ended == "done"


def _write(found: Sequence[Judgement], directory: Path) -> None:
    lines = "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in found)
    files.write_atomic(directory / "judgements.jsonl", lines)
    table = [score.to_json() for score in scores(found)]
    files.write_atomic(directory / "judge.json", json.dumps(table, indent=1) + "\n")

"""Has the judge look at contests: every verdict is paid once, and kept before it counts.

Verdicts are collected as a teacher's responses are (`gad_jax.teacher`): a file of lines named by
the content of the request, so that neither a crash, nor a rerun, nor a further student pays for one
again.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

from gad_jax.base import files
from gad_jax.base.errors import UserError
from gad_jax.collect import __main__ as collect
from gad_jax.evaluate.judge.contests import Contest, Judgement, Texts, judgement, scores
from gad_jax.evaluate.judge.settings import Judge
from gad_jax.teacher import Endpoint
from gad_jax.teacher.questions import Question, Teacher
from gad_jax.teacher.store import Store, scan


def judge(contests: Sequence[Contest], settings: Judge, directory: Path) -> list[Judgement]:
    """Returns what the judge says of all contests, after asking for what is not known yet.

    Writes verdicts.jsonl, judgements.jsonl (a line per contest) and judge.json (the scores) in
    `directory`. A stop request or a spent budget ends asking; what is missing is counted, and asked
    by the next run.
    """
    path = directory / "verdicts.jsonl"
    try:
        Endpoint(settings.base_url, settings.model, settings.key_variable)
    except ValueError as error:
        raise UserError(f"--judge.{error}") from None
    options = settings.collect(str(path))
    asked = Teacher(settings.model, "", options.sampling)
    directory.mkdir(parents=True, exist_ok=True)
    with files.lock_file(path, "--out"):
        for repeat in range(settings.repeats + 1):
            texts = read_verdicts(path)
            missing = _missing(contests, asked, texts, repeat)
            if settings.dry_run:
                collect.dry_run(options, missing)
                break
            if missing and not _ask(options, asked, missing, repeat):
                break
        texts = read_verdicts(path)
    found = [judgement(contest, asked, texts) for contest in contests]
    if not settings.dry_run:
        _write(found, directory)
    return found


def read_verdicts(path: Path) -> Texts:
    """Returns the texts of the verdicts in a file, nothing of a last line that a crash has torn.

    Raises UserError for any other line that is no verdict.
    """
    whole = path.read_bytes()[: scan(path).whole_bytes] if path.exists() else b""
    lines = [json.loads(line) for line in whole.split(b"\n") if line]
    return {(line["key"], line["sample"]): line["teacher_response"] for line in lines}


def _missing(
    contests: Sequence[Contest], judge: Teacher, texts: Texts, repeat: int
) -> list[Question]:
    """Returns what is asked in this round: first what has no verdict, then those again whose
    verdicts so far cannot be read."""
    found: dict[str, Question] = {}
    for contest in contests:
        shares = judgement(contest, judge, texts).shares
        for question, share in zip(contest.questions(judge, repeat), shares, strict=True):
            before = all((question.key, number) in texts for number in range(repeat))
            if share is None and before and (question.key, repeat) not in texts:
                found[question.key] = question
    return list(found.values())


def _ask(options: collect.Collect, judge: Teacher, missing: list[Question], repeat: int) -> bool:
    """Asks for verdicts; returns whether it came to an end of its own."""
    again = ", whose verdicts could not be read, again" if repeat else ""
    print(f"asking {judge.model} for {len(missing)} verdicts{again}", flush=True)
    started = time.monotonic()
    store = Store.open(Path(options.out))
    try:
        asking = asyncio.run(collect.ask(options, judge, store, missing))
    finally:
        store.close()
    collect.report(options, asking, len(missing), time.monotonic() - started)
    return asking.ended == "done"


def _write(found: Sequence[Judgement], directory: Path) -> None:
    lines = "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in found)
    files.write_atomic(directory / "judgements.jsonl", lines)
    table = [score.to_json() for score in scores(found)]
    files.write_atomic(directory / "judge.json", json.dumps(table, indent=1) + "\n")

"""Verdicts that are counted as they come."""

import asyncio
from pathlib import Path

import pytest

from gad_jax.evaluate.judge.contests import contests
from gad_jax.evaluate.judge.reading import Unreadable, Verdicts
from gad_jax.evaluate.judge.settings import Judge
from gad_jax.metrics.judging.protocol import MOST_UNREAD
from gad_jax.teacher import store
from gad_jax.teacher.questions import Teacher
from gad_jax.teacher.wire import Completion, Reply
from tests.evaluate.judge.harness import answers


def test_only_consecutive_verdicts_that_cannot_be_read_end_a_run(tmp_path: Path) -> None:
    judge = Teacher("m", "", {})
    found = contests([answers("gad", count=30)], Judge(model="m", protocol="reference"))
    questions = [question for contest in found for question in contest.questions(judge)]
    verdicts = Verdicts.open(tmp_path / "verdicts.jsonl")
    verdicts.watch(found, judge, proven=False)

    async def come(texts: list[str]) -> None:
        for text in texts:
            reply = Reply("", "m", (Completion(text, "stop"),), None)
            await verdicts.add(store.make_line(questions.pop(), judge, reply))

    asyncio.run(come(["no"] * (MOST_UNREAD - 1)))
    assert not verdicts.proven
    asyncio.run(come(["8 7"]))
    assert verdicts.proven
    assert (verdicts.unread, verdicts.in_a_row) == (MOST_UNREAD - 1, 0)
    with pytest.raises(Unreadable):
        asyncio.run(come(["no"] * (MOST_UNREAD - 1) + ["the last"]))
    assert (verdicts.last.text, verdicts.in_a_row) == ("the last", MOST_UNREAD)
    verdicts.close()
    lines = (tmp_path / "verdicts.jsonl").read_bytes().count(b"\n")
    assert lines == 2 * MOST_UNREAD  # the last one is kept, too

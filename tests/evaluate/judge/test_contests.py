"""The arithmetic of contests and scores, by hand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.evaluate.judge.contests import Score, contests, scores
from gad_jax.evaluate.judge.settings import Judge
from tests.evaluate.judge.harness import RATINGS, answers, ask, rates, settings, shown
from tests.fault_server import FaultServer

pytest_plugins = ["tests.run_fixtures"]


def test_ten_verdicts_by_hand(tmp_path: Path) -> None:
    with FaultServer(answer=rates) as server:
        (score,) = scores(ask([answers("gad", tokens=6)], settings(server), tmp_path))
    assert len(server.requests) == 20
    assert {body["temperature"] for body in server.requests} == {0.0}
    by_hand = [
        50 * (a / (a + b) + c / (c + d)) for (a, b), (c, d) in RATINGS
    ]  # 53.3, 62.5, 50, 30, 30, 50, 60, 9.1, 50, 80
    assert by_hand[1] == pytest.approx(62.5)
    assert score.score.value == pytest.approx(sum(by_hand) / 10)
    assert score.score.value == pytest.approx(47.4924, abs=1e-4)
    # the standard deviation of the ten is 18.6: a standard error of 5.9, in Student's interval
    # 13.3 points. Each end also allows for what ten prompts missed: 18 points.
    assert score.score.low == pytest.approx(47.5 - 18, abs=2.5)
    assert score.score.high == pytest.approx(47.5 + 18, abs=2.5)
    assert (score.judged, score.tokens, score.against_tokens) == (10, 6, 4)
    assert (score.unparsable, score.missing, score.wins) == (0, 0, None)
    lines = [json.loads(x) for x in (tmp_path / "judgements.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == pytest.approx(by_hand)
    assert lines[1]["shares"] == [0.75, 0.5]
    (stored,) = json.loads((tmp_path / "judge.json").read_text())
    assert stored["score"]["value"] == score.score.value


def test_a_liking_for_the_first_place_cancels(tmp_path: Path) -> None:
    students = [answers("before"), answers("gad")]
    with FaultServer(answer=lambda body: "[[1]]") as server:
        (gad, teacher) = scores(ask(students, settings(server, protocol="pairwise"), tmp_path))
    assert (gad.student, gad.against, teacher.student) == ("gad", "before", "teacher")
    assert gad.score.value == 50
    # ten ties do not exclude a rare win: the bound's weight is Beta(1, 10), 0.308 at 97.5 %
    assert (gad.score.low, gad.score.high) == pytest.approx((50 - 15.4, 50 + 15.4), abs=0.5)
    assert gad.first_place == 100
    assert (gad.wins, gad.ties, gad.losses) == (0, 10, 0)

    with FaultServer(answer=lambda body: "[[2]]") as server:
        judge = settings(server, protocol="pairwise", parameters='{"seed": 2}')
        last = scores(ask(students, judge, tmp_path))[0]
    assert (last.score.value, last.first_place, last.ties) == (50, 0, 10)

    # a judge that prefers gad, but takes the first place in half of the prompts
    def biased(body: dict[str, Any]) -> str:
        first, second = shown(body)
        number = int(second.split()[1]) if " " in second else 0
        return "[[1]]" if first.startswith("gad") or number % 2 else "[[2]]"

    with FaultServer(answer=biased) as server:
        judge = settings(server, protocol="pairwise", parameters='{"seed": 1}')
        gad = scores(ask(students, judge, tmp_path))[0]
    assert (gad.wins, gad.ties, gad.losses) == (5, 5, 0)
    assert (gad.score.value, gad.first_place) == (75, 75)


def test_samples_count_as_one_prompt(tmp_path: Path) -> None:
    """Prompt 0 has a sample that wins and one that loses, prompt 1 two that win."""

    def answer(body: dict[str, Any]) -> str:
        first, second = shown(body)
        student = first if first.startswith("gad") else second
        wins = student != "gad 0 1"
        return "[[1]]" if wins == (student == first) else "[[2]]"

    with FaultServer(answer=answer) as server:
        judge = settings(server, protocol="pairwise")
        (score,) = scores(ask([answers("gad", count=2, samples=2)], judge, tmp_path))
    assert (score.score.value, score.judged) == (75, 2)
    assert (score.wins, score.ties, score.losses) == (3, 0, 1)


def test_differences_are_paired_by_prompt(tmp_path: Path) -> None:
    """Against before, gad wins all ten contests and sft the five of even prompts."""

    def answer(body: dict[str, Any]) -> str:
        first, second = shown(body)
        student = first if not first.startswith("before") else second
        number = int(re.findall(r"[T ](\d+)", student)[0])
        wins = student.startswith("gad") or number % 2 == 0
        return "[[1]]" if wins == (student == first) else "[[2]]"

    students = [answers(label) for label in ("before", "gad", "sft#1", "sft#2")]
    with FaultServer(answer=answer) as server:
        found = scores(ask(students, settings(server, protocol="pairwise"), tmp_path))
    by_name = {score.student: score for score in found}
    assert list(by_name) == ["gad", "sft#1", "sft#2", "teacher", "sft (2 seeds)"]
    assert by_name["gad"].difference is None
    moved = by_name["sft#1"].difference
    assert moved is not None
    assert moved.value == -50
    assert moved.low < -50 < moved.high < 10
    both = by_name["sft (2 seeds)"]
    assert both.score == pytest.approx(by_name["sft#1"].score)  # equal seeds add nothing
    assert both.difference == pytest.approx(moved)
    assert (both.wins, both.losses, both.judged) == (10, 10, 10)
    stored = {one["student"]: one for one in json.loads((tmp_path / "judge.json").read_text())}
    assert stored["gad"]["difference"] is None
    assert stored["sft#1"]["difference"]["value"] == -50


def test_names_are_checked(tmp_path: Path) -> None:
    for flags in ({"reference": "gda"}, {"baseline": "gda", "protocol": "pairwise"}):
        with pytest.raises(UserError, match=r"=gda is no student here; name one of gad, teacher"):
            contests([answers("gad")], Judge(model="m", **flags))
    # with another reference the teacher is judged too
    judge = Judge(model="m", protocol="reference", reference="before")
    found = contests([answers("before"), answers("gad")], judge)
    assert {c.student for c in found} == {"gad", "teacher"}
    with pytest.raises(ValueError, match="prices"):
        Judge(model="m", max_cost=1.0)


def test_scores_without_a_verdict_are_no_numbers(tmp_path: Path) -> None:
    with FaultServer(answer=lambda body: "no") as server:
        found = ask([answers("gad", count=1)], settings(server, repeats=0), tmp_path)
    (score,) = scores(found)
    assert isinstance(score, Score)
    assert (score.judged, score.missing, score.tokens) == (0, 1, None)
    assert score.to_json()["score"] == {"value": None, "low": None, "high": None}

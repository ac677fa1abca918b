"""The judge against a server that fails: the arithmetic by hand, and what is paid."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.evaluate import __main__ as evaluate
from gad_jax.evaluate.answers import Answers
from gad_jax.evaluate.judge import verdicts
from gad_jax.evaluate.judge.contests import Judgement, Score, contests, scores
from gad_jax.evaluate.judge.settings import Judge
from gad_jax.metrics import heldout
from gad_jax.teacher.questions import Teacher, most_prompt_tokens
from tests.fault_server import FaultServer

pytest_plugins = ["tests.run_fixtures"]

ROOT = Path(__file__).parents[3]
ANSWER = re.compile(r"<answer \d>\n(.*?)\n</answer \d>", re.DOTALL)

# What the judge gives to (student, teacher) of each prompt, with the student first and second.
RATINGS = [
    ((8, 7), (8, 7)),
    ((9, 3), (6, 6)),
    ((5, 5), (5, 5)),
    ((2, 8), (4, 6)),
    ((10, 10), (1, 9)),
    ((7, 7), (7, 7)),
    ((6, 4), (6, 4)),
    ((1, 10), (1, 10)),
    ((3, 9), (9, 3)),
    ((8, 2), (8, 2)),
]


def answers(label: str, count: int = 10, tokens: int = 5, samples: int = 1) -> Answers:
    lines = [
        {
            "id": f"q{n}",
            "prompt": f"Prompt {n}?",
            "teacher": f"T{n}",
            "teacher_tokens": 4,
            "answers": [
                {"text": f"{label} {n} {s}", "tokens": tokens, "finished": True}
                for s in range(samples)
            ],
        }
        for n in range(count)
    ]
    return Answers(label, "set", "", tuple(lines))


def settings(server: FaultServer, **more: Any) -> Judge:
    given = {"protocol": "reference", "key_variable": ""} | more
    return Judge(model="m", base_url=server.url, **given)


def ask(students: list[Answers], judge: Judge, directory: Path) -> list[Judgement]:
    return verdicts.judge(contests(students, judge), judge, directory)


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """Returns the two answers in a request."""
    first, second = ANSWER.findall(body["messages"][0]["content"])
    return first, second


def rates(body: dict[str, Any]) -> str:
    """A judge that gives RATINGS."""
    first, second = shown(body)
    swapped = first.startswith("T")
    number = int((second if swapped else first).split()[1])
    student, teacher = RATINGS[number][swapped]
    return f"{teacher} {student}\nbecause" if swapped else f"{student} {teacher}\nbecause"


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
    # the standard deviation of the ten is 18.6: a standard error of 5.9
    assert score.score.low == pytest.approx(47.5 - 1.96 * 5.9, abs=2.5)
    assert score.score.high == pytest.approx(47.5 + 1.96 * 5.9, abs=2.5)
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
    assert gad.score == (50, 50, 50)
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


def test_faults_pass_and_every_verdict_is_there(tmp_path: Path) -> None:
    faults = ["429 after 0.1", "500", "stall", "truncate", "html", "reset", "drop", "no choices"]
    with FaultServer(
        lambda number, body: faults[number] if number < len(faults) else "", answer=rates
    ) as server:
        impatient = settings(server, timeout=0.5)
        (score,) = scores(ask([answers("gad")], impatient, tmp_path))
        assert (score.judged, score.missing) == (10, 0)
        assert score.score.value == pytest.approx(47.4924, abs=1e-4)
        sent = len(server.requests)
        # a rerun, and one with another student, pay for nothing that is there
        ask([answers("gad")], settings(server), tmp_path)
        assert len(server.requests) == sent
        ask([answers("gad"), answers("seqkd", count=10)], settings(server), tmp_path)
        assert len(server.requests) == sent + 20


def test_what_cannot_be_read_is_asked_again_and_counted(tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def answer(body: dict[str, Any]) -> str:
        text = body["messages"][0]["content"]
        seen[text] = seen.get(text, 0) + 1
        if "Prompt 3?" in text:
            return "I cannot rate these answers."
        if "Prompt 4?" in text and seen[text] == 1:
            return "Both are good."
        return rates(body)

    refusing = lambda number, body: (  # noqa: E731
        "400 content_filter" if "Prompt 5?" in body["messages"][0]["content"] else ""
    )
    with FaultServer(refusing, answer=answer) as server:
        (score,) = scores(ask([answers("gad")], settings(server), tmp_path))
        sent = len(server.requests)
        assert sent == 20 + 2 + 2 * 2  # prompt 4 once more, prompt 3 twice more, in both orders
        # of prompt 3 both orders three times, of prompt 4 both once
        assert (score.judged, score.unparsable, score.missing) == (8, 8, 2)
        ask([answers("gad")], settings(server), tmp_path)
        assert len(server.requests) == sent + 2  # what was refused is tried again, once a run
    kept = [n for n in range(10) if n not in (3, 5)]
    by_hand = [50 * sum(a / (a + b) for a, b in RATINGS[n]) for n in kept]
    assert score.score.value == pytest.approx(sum(by_hand) / 8)


def test_a_budget_ends_asking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question, _ = contests([answers("gad")], Judge())[0].questions(Teacher("m", "", {}))
    # A verdict takes 15 tokens, and while it is on its way the most that it may take.
    cap = most_prompt_tokens(question.sent) + 500 + 15 * 9
    with FaultServer(answer=rates) as server:
        judge = settings(server, max_total_tokens=cap, max_new_tokens=500, concurrency=1)
        (score,) = scores(ask([answers("gad")], judge, tmp_path))
        assert server.billed == 10
        assert score.missing > 0
        assert "the budget is used up" in capsys.readouterr().out
        dry = settings(server, max_new_tokens=500, dry_run=True)
        sent = len(server.requests)
        ask([answers("gad")], dry, tmp_path)
        assert len(server.requests) == sent
        assert f"{20 - server.billed} to ask for" in capsys.readouterr().out


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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with two evaluations of 12 prompts."""
    run = tmp_path / "run"
    (run / "evaluations").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    for step, label in enumerate(("before", "after gad")):
        examples = [
            {
                "prompt": f"Prompt {n}?",
                "teacher": f"T{n}",
                "student": f"{label} {n}",
                "length": 3 + step,
                "teacher_length": 4,
                "finished": True,
                "rouge_l": 0.5,
            }
            for n in range(12)
        ]
        result = heldout.HeldoutResult(label, step, {}, examples)
        (run / "evaluations" / f"{step}.json").write_text(result.to_json())
    return run


def test_the_command_judges_a_run(
    run: Path, capfd: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    def choose(body: dict[str, Any]) -> str:
        pairwise = "[[tie]]" in body["messages"][0]["content"]
        first, _ = shown(body)
        if pairwise:
            return "[[1]]" if first.startswith("after") else "[[2]]"
        return "8 4" if first.startswith("after") else "4 8"

    assert evaluate.main([str(run)]) == 0
    assert "no judge is configured" in capfd.readouterr().out
    with FaultServer(answer=choose) as server:
        flags = ("--judge.model=m", f"--judge.base_url={server.url}", "--judge.key_variable=")
        assert evaluate.main([str(run), *flags]) == 0
        assert len(server.requests) == 2 * 12 * 4  # two ratings, two opponents of before
    printed = capfd.readouterr().out
    assert "m prefers the answers to those of before" in printed
    assert "100.0 [100.0, 100.0]" in printed
    page = (run / "report.html").read_text()
    assert "m rates the answers next to those of teacher" in page
    assert "12 / 0 / 0" in page
    assert "http-equiv" in page
    broken = refused(evaluate.main, run, "--judge.model=m", "--judge.base_url=localhost")
    assert broken.startswith("--judge.base_url=")


def test_a_killed_judge_pays_for_nothing_twice(run: Path) -> None:
    with FaultServer(answer=lambda body: "8 7", latency=0.05) as server:
        command = [sys.executable, "-m", "gad_jax.evaluate", str(run), "--judge.model=m"]
        command += [f"--judge.base_url={server.url}", "--judge.protocol=reference"]
        command += ["--judge.key_variable=", "--judge.concurrency=2"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as first:
            deadline = time.monotonic() + 60
            while server.billed < 10 and time.monotonic() < deadline:
                time.sleep(0.01)
            first.send_signal(signal.SIGKILL)
        killed_at = len(server.requests)
        assert 10 <= killed_at < 48
        second = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert second.returncode == 0, second.stderr
        assert server.billed == 48
    found = json.loads((run / "judge.json").read_text())
    assert [(score["judged"], score["missing"]) for score in found] == [(12, 0), (12, 0)]


def test_scores_without_a_verdict_are_no_numbers(tmp_path: Path) -> None:
    with FaultServer(answer=lambda body: "no") as server:
        found = ask([answers("gad", count=1)], settings(server, repeats=0), tmp_path)
    (score,) = scores(found)
    assert isinstance(score, Score)
    assert (score.judged, score.missing, score.tokens) == (0, 1, None)
    assert score.to_json()["score"] == {"value": None, "low": None, "high": None}


def test_a_damaged_file_of_verdicts_is_named(tmp_path: Path) -> None:
    """A torn last line is asked for again; any other line that is none ends in a sentence."""
    path = tmp_path / "verdicts.jsonl"
    with FaultServer(answer=rates) as server:
        ask([answers("gad")], settings(server), tmp_path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-9])
        (score,) = scores(ask([answers("gad")], settings(server), tmp_path))
        assert (score.judged, len(server.requests)) == (10, 21)
        assert path.read_bytes().count(b"\n") == 20
        path.write_bytes(b"not ours\n" + whole)
        with pytest.raises(UserError, match=r"verdicts\.jsonl:1: not a line that collect wrote"):
            ask([answers("gad")], settings(server), tmp_path)
        assert len(server.requests) == 21

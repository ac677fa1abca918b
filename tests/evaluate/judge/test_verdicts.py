"""Verdicts from a server that fails: each is paid once, kept, and retried if it cannot be read."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.evaluate.judge.contests import contests, scores
from gad_jax.evaluate.judge.settings import Judge
from gad_jax.teacher.questions import Teacher, most_prompt_tokens
from tests.evaluate.judge.harness import RATINGS, answers, ask, rates, settings
from tests.fault_server import FaultServer

pytest_plugins = ["tests.run_fixtures"]
ROOT = Path(__file__).parents[3]


def test_faults_pass_and_every_verdict_is_there(tmp_path: Path) -> None:
    faults = ["429 after 0.1", "500", "stall", "truncate", "html", "reset", "drop", "no choices"]
    with FaultServer(
        lambda number, body: faults[number] if number < len(faults) else "", answer=rates
    ) as server:
        impatient = settings(server, timeout=2.0)
        (score,) = scores(ask([answers("gad")], impatient, tmp_path))
        assert (score.judged, score.missing) == (10, 0)
        assert score.score.value == pytest.approx(47.4924, abs=1e-4)
        sent = len(server.requests)
        # a rerun, and one with another student, pay for nothing that is there
        ask([answers("gad")], settings(server), tmp_path)
        assert len(server.requests) == sent
        ask([answers("gad"), answers("seqkd", count=10)], settings(server), tmp_path)
        assert len(server.requests) == sent + 20


def test_what_cannot_be_read_is_retried_and_counted(tmp_path: Path) -> None:
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
        # what was refused is tried again, once a run, and so is what could not be read
        assert len(server.requests) == sent + 2 + 2
    kept = [n for n in range(10) if n not in (3, 5)]
    by_hand = [50 * sum(a / (a + b) for a, b in RATINGS[n]) for n in kept]
    assert score.score.value == pytest.approx(sum(by_hand) / 8)


def test_a_budget_ends_asking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question, _ = contests([answers("gad")], Judge())[0].questions(Teacher("m", "", {}))
    # A verdict takes 15 tokens, and while it is in flight the most that it may take.
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


def test_a_killed_judge_pays_for_nothing_twice(run: Path) -> None:
    with FaultServer(answer=lambda body: "8 7", latency=0.05) as server:
        command = [sys.executable, "-m", "gad_jax.evaluate", str(run), "--judge.model=m"]
        command += [f"--judge.base_url={server.url}", "--judge.protocol=reference"]
        command += ["--judge.key_variable=", "--judge.concurrency=2"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as first:
            deadline = time.monotonic() + 600
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


def test_a_judge_that_cannot_be_read_is_given_up_and_asked_again_when_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    students = [answers("gad", count=60)]
    hostile = "I refuse.\x1b[2J sk-proj-SENTINEL0123456789abcdef"
    with FaultServer(answer=lambda body: hostile) as server:
        judge = settings(server, concurrency=2)
        with pytest.raises(
            UserError, match=r"m: 2[0-9] verdicts in a row could not be read"
        ) as said:
            ask(students, judge, tmp_path)
        assert "the last one 'I refuse." in str(said.value)
        assert "\x1b" not in str(said.value)
        assert "SENTINEL" not in str(said.value)
        paid = server.billed
        assert 20 <= paid <= 24  # those in flight are kept, too
    assert (tmp_path / "verdicts.jsonl").read_bytes().count(b"\n") == paid
    with FaultServer(answer=lambda body: "8 7") as server:
        (score,) = scores(ask(students, settings(server), tmp_path))
        assert (server.billed, score.judged, score.unparsable) == (120, 60, paid)
        ask(students, settings(server), tmp_path)
        assert server.billed == 120
    assert f"{paid} verdicts, a retry" in capsys.readouterr().out


def test_a_cut_verdict_is_unread_and_a_longer_limit_pays_for_the_cut_ones_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(number: int, body: dict[str, Any]) -> str:
        return "length" if "Prompt 2?" in body["messages"][0]["content"] else ""

    with FaultServer(cut, answer=rates) as server:
        (score,) = scores(ask([answers("gad")], settings(server, repeats=0), tmp_path))
        assert (score.judged, score.unparsable, server.billed) == (9, 2, 20)
    assert "2 of these verdicts could not be read, such as" in (said := capsys.readouterr().out)
    assert "(finish reason length)" in said
    with FaultServer(answer=rates) as server:
        longer = settings(server, max_new_tokens=2000)
        (score,) = scores(ask([answers("gad")], longer, tmp_path))
        assert (score.judged, score.missing, server.billed) == (10, 0, 2)
    with (
        FaultServer(lambda number, body: "length", answer=rates) as server,
        pytest.raises(UserError, match=r"it was cut, so raise --judge\.max_new_tokens"),
    ):
        ask([answers("gad", count=10)], settings(server, temperature=0.5), tmp_path)


def test_retries_of_a_judge_that_reads_most_end_quietly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def half(body: dict[str, Any]) -> str:
        number = int(re.findall(r"Prompt (\d+)", body["messages"][0]["content"])[0])
        return "8 7" if number % 2 else "no"

    with FaultServer(answer=half) as server:
        one_by_one = settings(server, concurrency=1)
        (score,) = scores(ask([answers("gad", count=30)], one_by_one, tmp_path))
        assert (score.judged, score.missing) == (15, 15)
        assert 60 + 20 <= server.billed <= 60 + 22
    assert "retries in a row could not be read; no more in this run" in capsys.readouterr().out

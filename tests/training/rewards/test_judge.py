"""A judge on this computer: verdicts become values, are paid once, and stop a run when unread."""

import json
import math
import re

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings.reward_judge import RewardJudge
from gad_jax.training.rewards.judge import FILE, Judge
from gad_jax.training.rewards.rules import Row
from tests.fault_server import FaultServer


def rows(count=4):
    """Responses s0, s1, … to one prompt."""
    row = Row("Hi", "", "T", 2, 2, True, [], "rows.jsonl:1", 0)
    return [row._replace(response=f"s{n}", sample=n) for n in range(count)]


def number(body):
    """The number of the response that a request shows in the second place."""
    text = body["messages"][0]["content"]
    first, second = text.split("</answer 1>")
    assert "\nT\n" in first
    return int(second.split("\ns")[1].split("\n")[0])


def rates(body):
    return f"8 {1 + number(body)}\nbecause"


def judge(server, directory, **more):
    settings = {"model": "m", "base_url": server.url, "key_variable": "", "timeout": 5.0} | more
    return Judge(RewardJudge(**settings), directory)


def test_verdicts_are_shares_and_are_paid_once(tmp_path):
    wanted = [n / (8 + n) for n in range(1, 5)]
    faults = ["429 after 0.1", "500", "truncate"]
    with FaultServer(lambda n, _: faults[n] if n < len(faults) else "", answer=rates) as server:
        asked = judge(server, tmp_path, attempts=8)
        assert asked(rows()) == pytest.approx(wanted)
        assert asked([*rows(2), *rows(2)]) == pytest.approx(wanted[:2] * 2)  # known by now
        assert len(server.requests) == 4 + len(faults)
        assert asked(rows(6))[5] == pytest.approx(6 / 14)  # the same loop and file
        asked.close()
        again = judge(server, tmp_path)
        assert again(rows(6))[:4] == pytest.approx(wanted)
        again.close()
        assert len(server.requests) == 6 + len(faults)
        assert len((tmp_path / FILE).read_text().splitlines()) == 6


def test_pairs_are_won_tied_or_lost(tmp_path):
    says = ["[[1]]", "[[2]]", "[[tie]]", "[[2]]"]
    with FaultServer(answer=lambda body: says[number(body)]) as server:
        asked = judge(server, tmp_path, protocol="pairwise")
        assert asked(rows()) == [0, 1, 0.5, 1]
        asked.close()


def test_what_has_no_verdict_is_nan_for_good(tmp_path):
    """Unread, refused, or not answered: a resumed run sees the same and pays for none again."""

    def script(_, body):
        return {1: "400 content_filter", 2: "500"}.get(number(body), "")

    with FaultServer(
        script, answer=lambda body: "Both." if number(body) == 0 else rates(body)
    ) as server:
        for _ in range(2):
            asked = judge(server, tmp_path, attempts=1)
            values = asked(rows())
            asked.close()
            assert [math.isnan(value) for value in values] == [True, True, True, False]
            sent = len(server.requests)
        assert len(server.requests) == sent == 4


def test_verdicts_that_cannot_be_read_stop_the_run_and_are_kept(tmp_path):
    with FaultServer(answer=lambda _: "Fine.\nBoth.") as server:
        asked = judge(server, tmp_path, concurrency=1)
        with pytest.raises(UserError) as refused:
            asked(rows(30))
        asked.close()
    said = str(refused.value)
    # Two requests are on their way at once.
    assert re.match(r"m: 2[01] verdicts in a row could not be read, the last one 'Fine. Bo", said)
    assert 20 <= len((tmp_path / FILE).read_text().splitlines()) < 30


def test_a_spent_budget_stops_the_run_and_counts_what_was_spent_before(tmp_path):
    caps = {"max_total_tokens": 900, "max_new_tokens": 50, "concurrency": 1}
    with FaultServer(answer=rates) as server:
        asked = judge(server, tmp_path, **caps)
        asked(rows(1))
        with pytest.raises(UserError, match=r"the budget of the judge is used up: .*max_cost, and"):
            asked(rows(100))
        asked.close()
        billed = server.billed
        assert 0 < billed < 100
        raised = judge(server, tmp_path, **caps | {"max_total_tokens": 0, "concurrency": 16})
        sent = len(server.requests)
        assert len(raised(rows(billed + 1))) == billed + 1
        assert len(server.requests) == sent + 1
        raised.close()
    lines = map(json.loads, (tmp_path / FILE).read_text().splitlines())
    assert len({line["key"] for line in lines}) == billed + 1


def test_a_service_that_cannot_be_one_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--reward.judge.base_url='nowhere' must be like https"):
        Judge(RewardJudge(model="m", base_url="nowhere"), tmp_path)
    with FaultServer(lambda *_: "401") as server:
        asked = judge(server, tmp_path, key_variable="NO_SUCH_KEY")
        with pytest.raises(
            UserError, match="the key in the environment variable NO_SUCH_KEY is no"
        ):
            asked(rows(1))
        asked.close()

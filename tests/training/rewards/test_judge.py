"""A judge on this computer: verdicts become values, are paid once, and stop a run when unread."""

import json
import math
import re

import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.data.epochs import PromptBatch
from gad_jax.data.sources.rows import Row as Source
from gad_jax.settings.reward import Reward
from gad_jax.settings.reward_judge import RewardJudge
from gad_jax.training.rewards.judge import DROPPED, FILE, Judge
from gad_jax.training.rewards.paying import Rewards
from gad_jax.training.rewards.rules import Row
from tests.fault_server import FaultServer


def rows(count=4):
    """Responses s0, s1, … to one prompt."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    row = Row("Hi", "", "<think>y</think>T", 2, 2, True, messages, "rows.jsonl:1", 0, "", "T")
    return [
        row._replace(response=f"<think>x</think>s{n}", answer=f"s{n}", sample=n)
        for n in range(count)
    ]


def number(body):
    """The number of the response that a request shows in the second place."""
    text = body["messages"][0]["content"]
    first, second = text.split("</answer 1>")
    assert "\nsystem: Be brief.\n\nHi\n" in first
    assert "think" not in text
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


def test_verdicts_that_cannot_be_read_stop_the_run_and_are_requested_by_the_next(tmp_path):
    broken = [True]
    with FaultServer(
        answer=lambda body: (
            "Fine.\nBoth." if broken[0] and number(body) else f"8 {1 + number(body) % 9}"
        )
    ) as server:
        asked = judge(server, tmp_path, concurrency=1)
        with pytest.raises(UserError) as refused:
            asked(rows(30))
        asked.close()
        said = str(refused.value)
        # Two requests are on their way at once.
        assert re.match(
            r"m: 2[01] verdicts in a row could not be read, the last one 'Fine. B", said
        )
        assert said.endswith(
            "and the same command resumes; for another --reward.judge.model, or "
            "max_new_tokens if it was cut, begin another --run_dir"
        )
        reasons = [
            json.loads(one)["finish_reason"] for one in (tmp_path / FILE).read_text().splitlines()
        ]
        assert 20 <= reasons.count(DROPPED) == len(reasons) // 2 < 30
        broken[0], sent = False, len(server.requests)
        again = judge(server, tmp_path)
        assert again(rows(30)) == pytest.approx(
            [n / (8 + n) for n in (1 + k % 9 for k in range(30))]
        )
        again.close()
        assert len(server.requests) == sent + 29  # the one that could be read is not paid twice
        final = judge(server, tmp_path)
        assert not any(map(math.isnan, final(rows(30))))
        final.close()
        assert len(server.requests) == sent + 29


def test_a_step_without_a_verdict_is_requested_by_the_run_that_resumes(tmp_path):
    nothing = np.full((1, 4), np.nan, np.float32)
    token, user = np.zeros(1, np.int32), {"role": "user", "content": "Hi"}
    batch = PromptBatch([token], [token], np.zeros(1, np.int32))
    sources = [Source((user,), ("T",), "rows.jsonl:1")]
    broken = [True]
    with FaultServer(answer=lambda body: "Both." if broken[0] else rates(body)) as server:
        given = RewardJudge(model="m", base_url=server.url, key_variable="")
        for attempt in (True, False):
            broken[0] = attempt
            rewards = Rewards(Reward(extra=("judge",), judge=given), tmp_path)
            values = rewards._values(rewards.terms[0], rows())
            if attempt:
                with pytest.raises(UserError, match=r"no finite value .* the same command resumes"):
                    rewards._look(rewards.terms[0], nothing, batch, sources)
            rewards.close()
            assert all(map(math.isnan, values)) == attempt
        assert len(server.requests) == 8


def test_a_service_that_refuses_every_question_is_quoted(tmp_path):
    nothing = np.full((1, 2), np.nan, np.float32)
    token, user = np.zeros(1, np.int32), {"role": "user", "content": "Hi"}
    batch = PromptBatch([token], [token], np.zeros(1, np.int32))
    sources = [Source((user,), ("T",), "rows.jsonl:1")]
    with FaultServer(lambda *_: "422 content_filter") as server:
        given = RewardJudge(model="m", base_url=server.url, key_variable="")
        rewards = Rewards(Reward(extra=("judge",), judge=given), tmp_path)
        assert all(map(math.isnan, rewards._values(rewards.terms[0], rows(2))))
        with pytest.raises(UserError, match=r"no finite value .* \(refused: status 422.*\); co"):
            rewards._look(rewards.terms[0], nothing, batch, sources)
        rewards.close()
    with FaultServer(answer=lambda _: "Fine.") as server:
        given = RewardJudge(model="m", base_url=server.url, key_variable="")
        unread = tmp_path / "unread"
        unread.mkdir()
        rewards = Rewards(Reward(extra=("judge",), judge=given), unread)
        rewards.judge.refusal = "of an earlier step"
        assert all(map(math.isnan, rewards._values(rewards.terms[0], rows(2))))
        with pytest.raises(
            UserError, match=r"rows.jsonl:1 \(it said 'Fine.'\); correct it, and the"
        ):
            rewards._look(rewards.terms[0], nothing, batch, sources)
        rewards.close()


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

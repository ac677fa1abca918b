"""The built-in terms."""

import math
import re
import time

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings.reward import Reward
from gad_jax.training.rewards import rules
from gad_jax.training.rewards.rules import Row

ROW = Row("p", "Answer: 12\n", "t", 8, 4, True, [], "rows.jsonl:3", 1, "Answer: 12", "t")


@pytest.mark.parametrize(
    ("tokens", "value"), [(1, math.log(0.5)), (2, 0), (4, 0), (6, 0), (12, -math.log(2))]
)
def test_length_is_paid_by_the_distance_from_the_teachers_range(tokens, value) -> None:
    rule = rules.rule("length", Reward(extra=("length",)))
    assert rule(ROW._replace(tokens=tokens)) == pytest.approx(value)


def test_a_range_may_have_no_lower_end() -> None:
    rule = rules.rule("length", Reward(extra=("length",), min_length_ratio=0.0))
    assert rules.values(rule, [ROW._replace(tokens=n) for n in (1, 6)]) == [0.0, 0.0]


def test_format_and_finished_are_yes_or_no() -> None:
    rule = rules.rule("format", Reward(extra=("format",), format=r"(?m)^Answer: \d+$"))
    assert rules.values(rule, [ROW, ROW._replace(response="Answer: x")]) == [1.0, 0.0]
    rule = rules.rule("finished", Reward(extra=("finished",)))
    assert rules.values(rule, [ROW, ROW._replace(finished=False)]) == [1.0, 0.0]
    assert ROW.place == "response 2 to rows.jsonl:3"


def found(expression: str, response: str) -> float:
    rule = rules.rule("format", Reward(extra=("format",), format=expression))
    return rule(ROW._replace(response=response))


@pytest.mark.parametrize(
    ("expression", "response"),
    [
        (r"\frac{d}{dx}", "\\frac{d}{dx}"),  # to the package regex, {d} allows deletions
        (r"^a{s}$", "b"),
        (r"^x{2}[{}]{,1}\N{DIGIT ONE}$", "xx}1"),
        (r"^(?:foo){e<=1}$", "fo"),
        (r"^[]{]+[^]{]$", "]{x"),
        (r"^[\[{]\{$", "[{"),
    ],
)
def test_an_expression_means_what_it_means_in_python(expression, response) -> None:
    for text in (response, f" {response}", ""):
        assert found(expression, text) == (re.search(expression, text) is not None)


def test_a_set_that_begins_like_a_class_is_warned_of_and_means_what_python_says() -> None:
    with pytest.warns(FutureWarning, match="nested set"):
        reward = Reward(extra=("format",), format="^[[:digit:]]$")
    rule = rules.rule("format", reward)
    assert [rule(ROW._replace(response=text)) for text in (":]", "1")] == [1, 0]


def test_a_search_that_would_take_years_ends_with_a_sentence() -> None:
    reward = Reward(extra=("format",), format="^(a|aa)+$", timeout=0.5)
    rule = rules.rule("format", reward)
    assert rule(ROW._replace(response="aaa")) == 1
    began = time.monotonic()
    with pytest.raises(UserError) as stopped:
        rule(ROW._replace(response="a" * 5000 + "b"))
    assert time.monotonic() - began < 100
    assert str(stopped.value) == (
        "--reward.format='^(a|aa)+$': a search took longer than 0.5 s, in response 2 to "
        "rows.jsonl:3; write it without a repeat in a repeat, or raise --reward.timeout"
    )

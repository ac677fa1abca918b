"""The built-in terms."""

import math

import pytest

from gad_jax.settings.reward import Reward
from gad_jax.training.rewards import rules
from gad_jax.training.rewards.rules import Row

ROW = Row("p", "Answer: 12\n", "t", 8, 4, True, [], "rows.jsonl:3", 1)


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

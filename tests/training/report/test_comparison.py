"""Intervals of a report's measures, differences between students, and seeds."""

from typing import Any

import numpy as np
import pytest

from gad_jax.metrics import statistics
from gad_jax.training.report.answers import Answers
from gad_jax.training.report.comparison import differences, intervals, seeds, shown


def answers(label: str, tokens: list[int], **measures: list[float]) -> Answers:
    lines: list[dict[str, Any]] = [
        {
            "teacher_tokens": 10,
            "answers": [
                {"tokens": count, "finished": count < 40}
                | {name: values[number] for name, values in measures.items()}
            ],
        }
        for number, count in enumerate(tokens)
    ]
    return Answers(label, "set", "", tuple(lines))


LENGTHS = [12, 14, 11, 40, 16, 13, 15, 12, 14, 13]
BEFORE = answers("before", LENGTHS, rouge_l=[0.2] * 10)
GAD = answers("gad", [n + 2 for n in LENGTHS], rouge_l=[0.3] * 10, score=[0.5] * 10)


def test_seeds_are_named_by_a_mark() -> None:
    labels = ["before", "gad#1", "gad#2", "seqkd#1", "#1", "x#"]
    assert seeds(labels) == {"gad (2 seeds)": ["gad#1", "gad#2"]}


def test_each_measure_has_its_interval() -> None:
    found = intervals([BEFORE, GAD])
    assert list(found) == ["before", "gad"]
    row = found["before"]
    assert list(row) == ["tokens", "× teacher", "cut", "ROUGE-L"]
    assert row["tokens"].value == 16.0
    assert row["× teacher"].value == pytest.approx(1.6)
    # the teacher's lengths are all 10, so the ratio is a tenth of the mean
    assert row["× teacher"].low == pytest.approx(row["tokens"].low / 10)
    assert row["cut"] == statistics.mean_interval([1.0] + [0.0] * 9)
    assert found["gad"]["D score"] == (0.5, 0.5, 0.5)


def test_differences_are_paired() -> None:
    found = differences([BEFORE, GAD])
    assert list(found) == ["gad"]
    assert found["gad"]["tokens"] == pytest.approx((2.0, 2.0, 2.0))
    assert found["gad"]["ROUGE-L"].value == pytest.approx(0.1)
    assert found["gad"]["ROUGE-L"].low < 0  # ten equal differences exclude no rare others
    assert "D score" not in found["gad"]  # the first student has none
    columns, rows = shown(found)
    assert columns == ["tokens", "cut", "ROUGE-L"]
    assert rows[0][1][0] == "2.000 [2.000, 2.000]"


def test_seeds_get_a_row_of_their_own() -> None:
    one, two = (answers(f"gad#{n}", [m + 4 * n for m in LENGTHS]) for n in (1, 2))
    found = intervals([BEFORE, one, two])
    assert list(found) == ["before", "gad#1", "gad#2", "gad (2 seeds)"]
    assert found["gad (2 seeds)"]["tokens"].value == pytest.approx(22.0)
    # means 20 and 24: Student's half-width for two is 12.706 · 2, and that over prompts adds
    assert found["gad (2 seeds)"]["tokens"].high > 22 + 25.4
    moved = differences([BEFORE, one, two])["gad (2 seeds)"]["tokens"]
    assert moved == pytest.approx((6.0, 6 - 25.412, 6 + 25.412), abs=0.01)
    assert np.isfinite(moved.low)


def test_without_answers_there_is_nothing() -> None:
    empty = [Answers(label, "set", "", ()) for label in ("before", "gad")]
    assert intervals(empty) == {"before": {}, "gad": {}}
    assert differences(empty) == {}
    assert shown({"before": {}}) == ([], [("before", [])])

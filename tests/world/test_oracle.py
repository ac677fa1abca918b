"""The oracle's measures of answers, by hand."""

import json
import math
from pathlib import Path

import pytest

from gad_jax.metrics import heldout
from gad_jax.world import oracle

ASKED = ["1 plus 1", "2 times 3"]
RIGHT = ["it is two since 1 plus 1 is 2 so it is two", "2 times 3 is 1 so it is one"]


def test_measures_of_two_answers_each() -> None:
    found = oracle.measure(
        ASKED, [[RIGHT[0], "it is three since 1 plus 1 is 2 so it is two"], [RIGHT[1], RIGHT[1]]]
    )
    assert found["valid"] == 0.75
    assert found["coverage"] == 2
    assert found["styles"] == {
        "headline": [0.5, 0.25],
        "steps": [0.5, 0.5],
        "story": [0, 0],
        "none": [0, 0],
    }
    assert found["diversity"] == pytest.approx(2.0)
    assert found["distinct"] == 0.75  # two different of two, one of two


def test_rare_styles_do_not_count_as_covered() -> None:
    story = "first 1 plus 1 is 2"
    few = oracle.measure(["1 plus 1"] * 100, [[story]] * 4 + [[RIGHT[0]]] * 96)
    more = oracle.measure(["1 plus 1"] * 100, [[story]] * 5 + [[RIGHT[0]]] * 95)
    assert (few["coverage"], more["coverage"]) == (1, 2)
    assert few["diversity"] == pytest.approx(
        math.exp(-0.04 * math.log(0.04) - 0.96 * math.log(0.96))
    )


def test_overlap_is_the_mean_over_pairs() -> None:
    found = oracle.mean_overlap(["1 plus 1", "a b"], ["1 plus 1", "c d"])
    assert found["ngram_1"] == found["rouge_l"] == 0.5
    assert found["ngram_3"] == 0.5  # 'a b' has none


def test_the_curve_joins_evaluations_and_scores(tmp_path: Path) -> None:
    (tmp_path / "evaluations").mkdir()
    for label, step, students in (("before", 0, ["", ""]), ("step 2", 2, [RIGHT[0], ""])):
        examples = [
            {"prompt": asked, "teacher": "", "student": text}
            for asked, text in zip(ASKED, students, strict=True)
        ]
        result = heldout.HeldoutResult(label, step, {}, examples)
        (tmp_path / "evaluations" / f"{label}.json").write_text(result.to_json())
    rows = [{"step": 1, "stage": "seqkd"}]
    rows += [{"step": 1 + n, "discriminator/margin": 0.5 + n} for n in (0, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert oracle.curve(tmp_path) == [
        {"step": 0, "valid": 0.0},
        {"step": 2, "valid": 0.5, "lead": -1.0},
    ]

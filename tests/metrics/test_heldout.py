"""What an evaluation holds, and what makes it the best of a run."""

from collections.abc import Sequence

import numpy as np
import pytest

from gad_jax.data.pipeline import Prepared
from gad_jax.data.sources.rows import Row
from gad_jax.metrics import heldout
from gad_jax.metrics.heldout import HeldoutResult
from gad_jax.rollout.answering import Answer, Responder


def test_a_score_needs_an_acceptable_length() -> None:
    examples = [
        {"teacher": "the cat sat", "student": "the cat"},  # 2 of 3 words, 1 of 2 bigrams
        {"teacher": "a dog", "student": "no"},
    ]
    result = HeldoutResult("after gad", 3, {"evaluation/length_ratio": 0.6}, examples)
    assert result.score("rouge_l", 0.5, 1.5) == pytest.approx(0.4)
    assert result.score("ngram_2", 0.5, 1.5) == pytest.approx((2 / 3) / 2)
    assert result.score("rouge_l", 0.6, 0.6) == pytest.approx(0.4)
    assert result.score("rouge_l", 0.7, 1.5) is None
    assert result.score("rouge_l", 0.0, 0.5) is None


class Parrot(Responder):
    """Says the same to everything, in three tokens; every second answer is cut."""

    def __init__(self) -> None:
        pass

    def answers(self, prompts: list[np.ndarray], numbers: Sequence[int]) -> list[list[Answer]]:
        return [[Answer("no idea", 3, number % 2 == 0)] for number in numbers]


def rows(count: int) -> Prepared:
    """Returns rows whose teacher says 'no N!' in six tokens."""
    found = object.__new__(Prepared)
    teacher = np.arange(6, dtype=np.int32)
    for name, value in {
        "rows": tuple(
            Row(({"role": "user", "content": f"q{n}"},), (f"no {n}!",), f"{n}")
            for n in range(count)
        ),
        "_prompts": [teacher] * count,
        "_responses": [[teacher]] * count,
    }.items():
        object.__setattr__(found, name, value)
    return found


def evaluate(count: int) -> HeldoutResult:
    about = {"label": "before", "step": 0, "prompts": count, "batch_prompts": 16}
    found = heldout.evaluate(Parrot(), rows(count), **about)
    assert found is not None
    return found


def test_means_are_over_the_examples() -> None:
    assert evaluate(4).metrics == {
        "evaluation/rouge_l": pytest.approx(0.5),  # one of two words
        "evaluation/length": 3.0,
        "evaluation/length_ratio": 0.5,
        "evaluation/cut_share": 0.5,
    }


def test_enough_answers_are_told_apart_from_the_teachers() -> None:
    result = evaluate(24)
    assert result.metrics["evaluation/auc"] == 1.0  # no answer of the teacher is without a mark
    assert [example["auc"] for example in result.examples] == [1.0] * 24
    assert heldout.parse(result.to_json()) == result
    assert "evaluation/auc" not in evaluate(23).metrics

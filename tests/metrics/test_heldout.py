"""What makes an evaluation the best of a run."""

import pytest

from gad_jax.metrics.heldout import HeldoutResult


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

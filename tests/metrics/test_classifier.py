"""The fresh classifier: chance where there is no difference, and what it cannot have seen."""

import numpy as np
import pytest

from gad_jax.metrics import classifier


def features(prompts: int, samples: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(prompts, samples, size))


def test_answers_of_one_distribution_are_told_apart_by_chance() -> None:
    # So many features that the answers which are fitted could be told apart.
    found = np.mean(
        [
            classifier.auc(features(20, 4, 40, seed), features(20, 4, 40, 50 + seed), seed)
            for seed in range(2)
        ]
    )
    # 40 prompts; the mean of 16 pairs has a standard deviation of 0.22 or less
    assert found == pytest.approx(0.5, abs=4 * 0.22 / 40**0.5)


def test_a_shift_is_found_in_its_direction() -> None:
    teacher, student = features(40, 3, 10, 0), features(40, 1, 10, 1)
    teacher[..., 3] += 2
    found = classifier.auc(teacher, student)
    assert len(found) == 40
    # that of two normal distributions, two standard deviations apart: Φ(√2) = 0.921
    assert np.mean(found) == pytest.approx(0.921, abs=0.07)


def test_features_that_name_the_prompt_do_not_help() -> None:
    """A classifier that saw the scored prompts would be perfect here."""
    teacher, student = features(24, 2, 4, 0), features(24, 2, 4, 1)
    for prompt in range(24):
        side = np.random.default_rng(prompt).choice([-1.0, 1.0])
        teacher[prompt] += 9 * side * np.eye(24, 4, prompt % 4)[prompt % 24]
    assert np.mean(classifier.auc(teacher, student)) == pytest.approx(0.5, abs=0.25)


def test_equal_answers_are_ties() -> None:
    same = np.zeros((4, 2, 3))
    assert classifier.auc(same, same) == [0.5] * 4

"""Intervals, length control and agreement, by hand and on judges whose likings are known."""

import math

import numpy as np
import pytest

from gad_jax.metrics import statistics

RNG = np.random.default_rng(7)
REFERENCE = RNG.lognormal(6, 0.5, 400)
LONGER = REFERENCE * RNG.lognormal(0.2, 0.4, 400)  # a quarter longer in the mean, not always
DIFFERENCE = LONGER - REFERENCE


def control(preferences: np.ndarray) -> statistics.Interval:
    return statistics.length_controlled(preferences.tolist(), LONGER.tolist(), REFERENCE.tolist())


def test_a_mean_has_the_interval_of_the_normal_law() -> None:
    """40 ones among 100: the standard error of the mean is √(0.4 · 0.6 / 100) = 0.049."""
    found = statistics.mean_interval([1.0] * 40 + [0.0] * 60)
    assert found.value == pytest.approx(0.4)
    # 1.96 standard errors; the draws of the bootstrap leave about 0.01
    assert found.low == pytest.approx(0.4 - 0.096, abs=0.015)
    assert found.high == pytest.approx(0.4 + 0.096, abs=0.015)
    assert found == statistics.mean_interval([1.0] * 40 + [0.0] * 60)
    assert statistics.mean_interval([0.7]) == (0.7, 0.7, 0.7)
    assert math.isnan(statistics.mean_interval([]).value)
    assert str(statistics.Interval(52.26, 49.96, 54.5)) == "52.3 [50.0, 54.5]"


def test_few_repetitions_have_students_interval() -> None:
    """1, 2, 3: the standard error is 1 / √3, and Student's t with two degrees of freedom 4.303."""
    found = statistics.t_interval([1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, 2.0 - 2.484, 2.0 + 2.484), abs=1e-3)
    assert statistics.t_interval([0.5] * 4) == (0.5, 0.5, 0.5)
    alone = statistics.t_interval([0.7])
    assert alone.value == 0.7
    assert math.isnan(alone.low)
    assert math.isnan(statistics.t_interval([]).value)


@pytest.mark.parametrize("steepness", [1.0, 3.0, np.inf])
def test_a_judge_that_only_likes_length_is_brought_to_parity(steepness: float) -> None:
    chance = (DIFFERENCE > 0) if np.isinf(steepness) else None
    if chance is None:
        chance = 1 / (1 + np.exp(-steepness * DIFFERENCE / DIFFERENCE.std()))
    preferences = (RNG.random(400) < chance).astype(float)
    assert preferences.mean() > 0.56
    found = control(preferences)
    assert found.value == pytest.approx(0.5, abs=0.07)
    assert found.value < preferences.mean()


@pytest.mark.parametrize("chance", [0.3, 0.5, 0.8])
def test_a_judge_that_does_not_care_for_length_is_left_alone(chance: float) -> None:
    preferences = (RNG.random(400) < chance).astype(float)
    found = control(preferences)
    assert found.value == pytest.approx(preferences.mean(), abs=0.03)
    # four standard errors of a share of 400
    assert found.value == pytest.approx(chance, abs=0.1)
    assert found.low < found.value < found.high
    assert 0.05 < found.high - found.low < 0.15


def test_a_judge_that_likes_length_and_quality_keeps_the_quality() -> None:
    """Logits 1 + 2 tanh(Δ / std Δ): at equal length σ(1) = 0.731."""
    logits = 1 + 2 * np.tanh(DIFFERENCE / DIFFERENCE.std())
    ratings = 1 / (1 + np.exp(-logits))  # shares between 0 and 1, as ratings give
    assert ratings.mean() > 0.75
    assert control(ratings).value == pytest.approx(1 / (1 + math.exp(-1)), abs=0.005)


def test_length_control_without_lengths_that_differ() -> None:
    same = statistics.length_controlled([1.0, 0.0, 1.0, 1.0], [5.0] * 4, [5.0] * 4)
    assert same.value == pytest.approx(0.75, abs=1e-3)  # the penalty on θ
    all_won = statistics.length_controlled([1.0] * 10, [3.0, 6.0] * 5, [4.5] * 10)
    assert all_won.value > 0.9
    assert math.isnan(statistics.length_controlled([], [], []).value)


def test_one_sided_lengths_are_noticed() -> None:
    assert statistics.one_sided([2.0] * 30, [1.0] * 30)
    assert statistics.one_sided([1.0] * 30, [2.0] * 30)
    assert not statistics.one_sided([1.0, 3.0] * 10, [2.0] * 20)
    assert not statistics.one_sided([2.0] * 5, [2.0] * 5)


def test_alpha_by_hand() -> None:
    """Two units agree (a a, b b), one does not (a b): coincidences o_ab = 1, n = 6, n_a = n_b = 3;
    α = 1 − 5 · 2 / (36 − 18) = 4/9."""
    assert statistics.alpha([["a", "a"], ["b", "b"], ["a", "b"]]) == pytest.approx(4 / 9)
    assert statistics.alpha([["a", "a"], ["b", "b"], ["b"]]) == 1.0
    assert math.isnan(statistics.alpha([["a"], ["b"]]))
    assert math.isnan(statistics.alpha([["a", "a"], ["a", "a"]]))


def test_alpha_of_a_published_example() -> None:
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers,
    twelve units, missing values; nominal α = 0.743."""
    table = """
        1 2 3 3 2 1 4 1 2 . . .
        1 2 3 3 2 2 4 1 2 5 . 3
        . 3 3 3 2 3 4 2 2 5 1 .
        1 2 3 3 2 4 4 1 2 5 1 .
    """
    rows = [line.split() for line in table.strip().splitlines()]
    units = [[vote for vote in unit if vote != "."] for unit in zip(*rows, strict=True)]
    assert statistics.alpha(units) == pytest.approx(0.743, abs=5e-4)

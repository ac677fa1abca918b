"""Length control on judges whose likings are known."""

import math

import numpy as np
import pytest

from gad_jax.metrics import length_control, statistics

RNG = np.random.default_rng(7)
REFERENCE = RNG.lognormal(6, 0.5, 400)
LONGER = REFERENCE * RNG.lognormal(0.2, 0.4, 400)  # a quarter longer in the mean, not always
DIFFERENCE = LONGER - REFERENCE


def control(preferences: np.ndarray) -> statistics.Interval:
    return statistics.length_controlled(preferences.tolist(), LONGER.tolist(), REFERENCE.tolist())


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


def test_ratings_have_narrower_intervals_than_wins() -> None:
    """Beta(12 q, 12 (1 − q)) has a thirteenth of the variance of a win with chance q."""
    wins = control((RNG.random(400) < 0.6).astype(float))
    ratings = control(RNG.beta(7.2, 4.8, 400))
    assert 0.2 < (ratings.high - ratings.low) / (wins.high - wins.low) < 0.45
    assert ratings.low < 0.6 < ratings.high


def test_the_interval_keeps_a_width_at_the_ends() -> None:
    """48 wins of 48 have Clopper and Pearson's lower bound 0.926 where lengths do not differ."""
    lengths = [5.0] * 48
    won = statistics.length_controlled([1.0] * 48, lengths, lengths)
    lost = statistics.length_controlled([0.0] * 48, lengths, lengths)
    assert won.low == pytest.approx(0.926, abs=0.02)
    assert won.value > 0.99
    assert (lost.low, lost.high) == pytest.approx((1 - won.high, 1 - won.low), abs=1e-6)
    one = statistics.length_controlled([1.0], [3.0], [5.0])
    assert one.low < 0.3 < one.value


def test_the_two_sides_are_symmetric_where_both_are_longer_at_times() -> None:
    """With the sides swapped the share is 1 − share; the prior hardly counts there."""
    preferences = (RNG.random(400) < 0.7).astype(float)
    ours = control(preferences)
    theirs = statistics.length_controlled(1 - preferences, REFERENCE, LONGER)
    assert theirs.value == pytest.approx(1 - ours.value, abs=0.02)


def test_short_answers_are_corrected_by_the_prior() -> None:
    """All answers have 0.4 times the length: the data cannot tell φ, and the prior says 1.75.

    With that φ and half a unit of difficulty, a tenth of wins is about a quarter at equal length.
    """
    lengths = 0.4 * REFERENCE * RNG.lognormal(0, 0.1, 400)
    preferences = (RNG.random(400) < 0.1).astype(float)
    found = statistics.length_controlled(preferences, lengths, REFERENCE)
    assert statistics.one_sided(lengths, REFERENCE)
    assert preferences.mean() + 0.05 < found.value < 0.4
    assert found.high - found.low > 0.1
    other = length_control.Prior(slope=0.0, difficulty=0.0, weight=10.0)
    unchanged = length_control.predict(preferences, lengths, REFERENCE, other)
    assert unchanged == pytest.approx(preferences.mean(), abs=0.01)


@pytest.mark.parametrize(
    ("slope", "rated", "law"),
    [(0.0, False, (-0.8, 0.3)), (3.0, True, (-0.8, 0.3)), (3.0, False, (0.1, 0.5))],
)
def test_the_interval_covers_at_48_prompts(
    slope: float, rated: bool, law: tuple[float, float]
) -> None:
    """The form with more kinds and samples is benchmarks/interval_coverage.py."""
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(40):
        others = generator.lognormal(6.5, 0.5, 48)
        lengths = others * generator.lognormal(*law, 48)
        term = np.tanh((lengths - others) / (lengths - others).std(ddof=1))
        chance = 1 / (1 + np.exp(-1 - slope * term))
        ratings = generator.beta(12 * chance, 12 * (1 - chance))
        preferences = ratings if rated else (generator.random(48) < chance).astype(float)
        found = statistics.length_controlled(preferences, lengths, others)
        inside += found.low <= 1 / (1 + math.exp(-1)) <= found.high
    # of 40 samples with coverage 0.93 fewer than 33 hold the truth in 1 of 90 cases
    assert inside >= 33

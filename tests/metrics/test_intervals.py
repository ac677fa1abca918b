"""Intervals by hand, by known formulas and by simulation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from gad_jax.metrics import statistics
from gad_jax.metrics.statistics import SHARES, UNBOUNDED, Interval


def test_a_mean_has_the_interval_of_the_normal_law() -> None:
    """40 ones among 100: the standard error of the mean is √(0.4 · 0.6 / 100) = 0.049."""
    found = statistics.mean_interval([1.0] * 40 + [0.0] * 60)
    assert found.value == pytest.approx(0.4)
    # 1.96 standard errors; the draws of the bootstrap leave about 0.01
    assert found.low == pytest.approx(0.4 - 0.096, abs=0.015)
    assert found.high == pytest.approx(0.4 + 0.096, abs=0.015)
    assert found == statistics.mean_interval([1.0] * 40 + [0.0] * 60)
    # One value says little: the mean of a share may be anything from 0.7 / 40 up.
    assert statistics.mean_interval([0.7]).low < 0.05
    assert statistics.mean_interval([0.7]).high > 0.95
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


@pytest.mark.parametrize("wins", [0, 1, 24, 47, 48])
def test_wins_have_clopper_and_pearsons_interval(wins: int) -> None:
    found = statistics.mean_interval([1.0] * wins + [0.0] * (48 - wins))
    exact = stats.binomtest(wins, 48).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_all_equal_values_still_have_a_width() -> None:
    """48 ties: the weight of the bound is Beta(1, 48), at most 1 − 0.025^(1/48) = 0.074 in 97.5 %
    of draws, so the interval is 0.5 ± 0.037."""
    found = statistics.mean_interval([0.5] * 48)
    assert (found.low, found.high) == pytest.approx((0.463, 0.537), abs=2e-3)
    lengths = statistics.mean_interval([7.0] * 48)
    assert lengths == (7.0, 7.0, 7.0)


def test_lengths_have_students_interval_at_least() -> None:
    values = np.random.default_rng(1).normal(100, 10, 200)
    found = statistics.mean_interval(values)
    student = statistics.t_interval(values)
    assert found.low <= student.low < student.high <= found.high
    assert found.high - found.low < 1.25 * (student.high - student.low)
    few = statistics.mean_interval([10.0, 20.0, 60.0])
    assert few == statistics.t_interval([10.0, 20.0, 60.0])
    alone = statistics.mean_interval([30.0])
    assert (alone.value, str(alone)) == (30.0, "30.0")
    assert math.isnan(alone.low)


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match=r"values lie in \[0, 2\]"):
        statistics.mean_interval([0.0, 2.0], bounds=SHARES)
    assert statistics.mean_interval([0.2, 0.4], bounds=UNBOUNDED).low < 0


def test_paired_differences_are_narrower_than_the_two_intervals() -> None:
    generator = np.random.default_rng(2)
    hard = generator.beta(2, 5, 48)
    before, after = hard, np.clip(hard + generator.normal(0.05, 0.03, 48), 0, 1)
    found = statistics.difference_interval(after, before, bounds=SHARES)
    assert 0 < found.low < 0.05 < found.high
    apart = statistics.mean_interval(after)
    assert found.high - found.low < 0.5 * (apart.high - apart.low)


def test_two_students_that_always_win_may_still_differ() -> None:
    found = statistics.difference_interval([1.0] * 48, [1.0] * 48, bounds=SHARES)
    assert found.value == 0
    assert (found.low, found.high) == pytest.approx((-0.074, 0.074), abs=2e-3)
    assert math.isnan(statistics.difference_interval([], []).value)


def test_seeds_add_to_prompts() -> None:
    """Distances of 3 over prompts and 4 over seeds make 5."""
    prompts = Interval(10.0, 7.0, 13.0)
    seeds = [10 - 4 / 12.706, 10 + 4 / 12.706]  # Student's factor for two, over √2, times √2
    assert statistics.over_seeds(prompts, seeds) == pytest.approx((10.0, 5.0, 15.0), abs=1e-3)
    assert statistics.over_seeds(prompts, [10.0]) == prompts
    same = np.full((3, 48), 1.0)
    assert statistics.seeds_interval(same, bounds=SHARES) == statistics.mean_interval([1.0] * 48)
    spread = statistics.seeds_interval(np.asarray([[1.0] * 48, [0.0] * 48]), bounds=SHARES)
    assert spread == (0.5, 0.0, 1.0)


Draw = Callable[[np.random.Generator], Interval]
SIMULATED: dict[str, tuple[float, Draw]] = {
    "rate 0.0035": (0.0035, lambda g: statistics.mean_interval(1.0 * (g.random(48) < 0.0035))),
    "rate 0.96": (0.96, lambda g: statistics.mean_interval(1.0 * (g.random(48) < 0.96))),
    "few that are not ties": (
        0.5,
        lambda g: statistics.mean_interval(g.choice([0, 0.5, 1], 48, p=[0.02, 0.96, 0.02])),
    ),
    "F1, mostly 0": (
        0.02,
        lambda g: statistics.mean_interval((g.random(48) < 0.05) * g.beta(4, 6, 48)),
    ),
    "skewed length": (
        math.exp(0.5),
        lambda g: statistics.mean_interval(g.lognormal(0, 1, 48), bounds=UNBOUNDED),
    ),
    "difference of wins": (
        -0.03,
        lambda g: statistics.difference_interval(
            1.0 * (g.random(48) < 0.97), np.ones(48), bounds=SHARES
        ),
    ),
    "difference of lengths": (
        0.0,
        lambda g: statistics.difference_interval(g.lognormal(0, 1, 48), g.lognormal(0, 1, 48)),
    ),
    "three seeds": (
        0.0,
        lambda g: statistics.seeds_interval(
            g.normal(0, 0.3, (3, 1)) + g.normal(0, 0.2, 48) + g.normal(0, 0.1, (3, 48)),
            bounds=UNBOUNDED,
        ),
    ),
}


@pytest.mark.parametrize("name", SIMULATED)
def test_intervals_cover_at_48_prompts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form with more kinds and samples is benchmarks/interval_coverage.py."""
    monkeypatch.setattr("gad_jax.metrics.intervals.DRAWS", 1000)  # it need not be exact here
    truth, draw = SIMULATED[name]
    generator = np.random.default_rng(4)
    found = [draw(generator) for _ in range(200)]
    inside = sum(one.low <= truth <= one.high for one in found)
    # of 200 samples with coverage 0.93 fewer than 178 hold the truth in 1 of 70 cases
    assert inside >= 178

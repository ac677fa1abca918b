"""Statistics of scores beyond their mean: intervals, length control and agreement of voters."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

LEVEL = 0.95
DRAWS = 2000
RIDGE = 0.1
"""Penalty on the length coefficient, which is infinite for a judge that always takes the longer."""

ONE_SIDED = 0.05
"""With a smaller share of answers that are the longer (or shorter) one, `one_sided` is True."""

Values = Float[np.ndarray, " n"]


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Returns the mean of one value per prompt, with a percentile bootstrap interval over prompts.

    NaN for no values. A single prompt gives an interval of width 0, which means nothing.
    """
    x = np.asarray(values, np.float64)
    if x.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    return _interval(float(x.mean()), _weights(x.size, seed) @ x / x.size)


def t_interval(values: Sequence[float]) -> Interval:
    """Returns the mean of a few repetitions, with Student's t interval.

    NaN for no values. A single repetition has bounds of NaN: it says nothing about the next.
    """
    x = np.asarray(values, np.float64)
    if x.size < 2:
        return Interval(float(x.mean()) if x.size else np.nan, np.nan, np.nan)
    half = float(stats.t.ppf((1 + LEVEL) / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def length_controlled(
    preferences: Sequence[float],
    lengths: Sequence[float],
    other_lengths: Sequence[float],
    seed: int = 0,
) -> Interval:
    """Returns the mean preference that equally long answers would get, in [0, 1].

    This is the regression of AlpacaEval 2 (arXiv:2404.04475): preference ~ σ(θ + φ tanh(Δ / std Δ))
    with Δ the difference in length. With Δ = 0 it is σ(θ). The term for the difficulty of an
    instruction is left out, because it needs a leaderboard of models. A preference is the share
    won: 1, ½, 0, or the student's part of two ratings.

    Where nearly all answers of one side are longer (`one_sided`), the result is an extrapolation
    without data behind it.
    """
    y = np.asarray(preferences, np.float64)
    difference = np.asarray(lengths, np.float64) - np.asarray(other_lengths, np.float64)
    if y.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    spread = difference.std()
    x = np.tanh(difference / spread) if spread > 0 else np.zeros_like(y)
    whole = _intercepts(y, x, np.ones((1, y.size)))
    drawn = _intercepts(y, x, _weights(y.size, seed))
    return _interval(float(_sigmoid(whole)[0]), _sigmoid(drawn))


def one_sided(lengths: Sequence[float], other_lengths: Sequence[float]) -> bool:
    """Returns whether one side's answers are nearly always the longer ones."""
    difference = np.asarray(lengths, np.float64) - np.asarray(other_lengths, np.float64)
    decided = difference[difference != 0]
    share = float(np.mean(decided > 0)) if decided.size else 0.5
    return not ONE_SIDED <= share <= 1 - ONE_SIDED


def alpha(votes: Sequence[Sequence[str]]) -> float:
    """Returns Krippendorff's alpha for votes without an order: 1 for full agreement, 0 for chance.

    `votes` are the votes on each unit, any number of them. Units with fewer than two do not count.
    NaN when no unit counts, or when all votes are the same.
    """
    units = [unit for unit in votes if len(unit) >= 2]
    names = sorted({vote for unit in units for vote in unit})
    coincidences = np.zeros((len(names), len(names)))
    for unit in units:
        counts = np.asarray([unit.count(name) for name in names], np.float64)
        pairs = np.outer(counts, counts) - np.diag(counts)
        coincidences += pairs / (len(unit) - 1)
    totals = coincidences.sum(axis=0)
    n = totals.sum()
    expected = n * n - np.sum(totals * totals)
    if expected == 0:
        return float("nan")
    observed = n - np.trace(coincidences)
    return float(1 - (n - 1) * observed / expected)


def _weights(size: int, seed: int) -> Float[np.ndarray, "draws n"]:
    """Returns how often each of `size` prompts is drawn in each bootstrap sample."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(size, np.full(size, 1 / size), DRAWS).astype(np.float64)


def _interval(value: float, drawn: Shaped[np.ndarray, " draws"]) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _intercepts(
    y: Values, x: Values, weights: Float[np.ndarray, "draws n"]
) -> Float[np.ndarray, " draws"]:
    """Returns θ of σ(θ + φ x) fitted to y by Newton's method, for each row of weights at once.

    θ has a small penalty too. Without it θ would be infinite when all preferences are 0 or all 1.
    """
    features = np.stack([np.ones_like(x), x])
    penalty = np.asarray([1e-3, RIDGE])
    beta = np.zeros((len(weights), 2))
    for _ in range(50):
        fitted = _sigmoid(beta @ features)
        gradient = (weights * (fitted - y)) @ features.T + penalty * beta
        curvature = weights * fitted * (1 - fitted)
        hessian = np.einsum("bn,in,jn->bij", curvature, features, features) + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        beta -= np.clip(step, -2.0, 2.0)  # far from the optimum Newton overshoots
        if np.abs(step).max() < 1e-8:
            break
    return beta[:, 0]


def _sigmoid(x: Shaped[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    return 0.5 * (1 + np.tanh(0.5 * x))

"""Statistics of scores beyond their mean, and the agreement of annotators."""

from collections.abc import Sequence

import numpy as np

from gad_jax.metrics.intervals import (
    SHARES,
    UNBOUNDED,
    Bounds,
    Interval,
    difference_interval,
    mean_interval,
    over_seeds,
    seeds_interval,
    t_interval,
)
from gad_jax.metrics.length_control import length_controlled, one_sided

__all__ = [
    "SHARES",
    "UNBOUNDED",
    "Bounds",
    "Interval",
    "alpha",
    "difference_interval",
    "length_controlled",
    "mean_interval",
    "one_sided",
    "over_seeds",
    "seeds_interval",
    "t_interval",
]


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

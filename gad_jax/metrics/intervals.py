"""95 % intervals of means over prompts and seeds that keep their coverage at 48 prompts.

`benchmarks/interval_coverage.py` simulates the coverage of each.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
DRAWS = 4000
SHARES = (0.0, 1.0)
"""The bounds of shares, F1 and ROUGE-L."""

UNBOUNDED = (-np.inf, np.inf)
"""The bounds of lengths and scores."""

_BOOTSTRAP_TAIL = 0.015
"""A little below `TAIL`: with a skewed measure the studentised bootstrap alone covers 92 %."""

_BOOTSTRAP_FROM = 8
"""With fewer values, too many resamples have no spread."""

_TIED = 0.2
"""Where one difference makes up this share, most often 0, differences count as bounded only."""

Values = Float[np.ndarray, " n"]
Numbers = Sequence[float] | Sequence[int] | Shaped[np.ndarray, " n"]
Bounds = tuple[float, float]


class Interval(NamedTuple):
    """An estimate with its 95 % interval; bounds of NaN where there is too little for one."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.shown(1)

    def shown(self, digits: int) -> str:
        """Returns the numbers with this many digits after the point; the value alone where the
        bounds are NaN."""
        if np.isnan(self.low):
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def percent(self) -> "Interval":
        """Returns the interval of a share in percent."""
        return Interval(*(100 * number for number in self))


NOTHING = Interval(np.nan, np.nan, np.nan)


def mean_interval(values: Numbers, seed: int = 0, bounds: Bounds | None = None) -> Interval:
    """Returns the mean of one value per prompt, with its interval over prompts.

    `bounds` are the smallest and largest possible values, or `UNBOUNDED`. By default they are
    [0, 1] if all values lie there. Bounded values get Gaffke's interval, which is Clopper and
    Pearson's where all values are 0 or 1. It has a width also where all values are equal: 48 of 48
    give [0.926, 1].

    Values without bounds get the hull of Student's interval and the bootstrap-t. It cannot know of
    a rare large value that the sample does not have.

    NaN for no values; a single unbounded value has bounds of NaN. Raises ValueError for a
    value outside the bounds.
    """
    x = np.asarray(values, np.float64)
    if x.size == 0:
        return NOTHING
    if bounds is None and x.min() >= SHARES[0] and x.max() <= SHARES[1]:
        bounds = SHARES
    if bounds is None or np.isinf(bounds).any():
        return _unbounded(x, seed)
    return _bounded(x, bounds, seed)


def difference_interval(
    after: Numbers,
    before: Numbers,
    seed: int = 0,
    bounds: Bounds | None = None,
) -> Interval:
    """Returns the mean of after − before, paired by prompt. `bounds` are those of one value.

    Where at least a fifth of the differences are the same, as between two students that often both
    win, the bounds are used: such a sample says little about rare differences.
    """
    x = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    if x.size == 0:
        return NOTHING
    tied = np.unique(x, return_counts=True)[1].max() >= _TIED * x.size
    if bounds is not None and np.isfinite(bounds).all() and (tied or x.size < _BOOTSTRAP_FROM):
        width = bounds[1] - bounds[0]
        return _bounded(x, (-width, width), seed)
    return _unbounded(x, seed)


def t_interval(values: Numbers) -> Interval:
    """Returns the mean of a few repetitions, with Student's t interval.

    NaN for no values. A single repetition has bounds of NaN: it says nothing about the next.
    """
    x = np.asarray(values, np.float64)
    if x.size < 2:
        return Interval(float(x.mean()) if x.size else np.nan, np.nan, np.nan)
    # Here: no start needs it. scipy.stats calls it too, and takes half a second to load.
    from scipy import special

    half = float(special.stdtrit(x.size - 1, 1 - TAIL) * x.std(ddof=1) / np.sqrt(x.size))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def over_seeds(prompts: Interval, repetitions: Numbers) -> Interval:
    """Returns an interval over both prompts and seeds, from the one over prompts and from each
    seed's mean.

    The distances from the mean to the bounds add in squares: those over the same prompts, which
    all seeds share, and those of Student's interval over seeds. One seed leaves the interval as it
    is; two seeds say little, and Student's factor is 12.7.
    """
    seeds = t_interval(repetitions)
    if np.isnan(seeds.low):
        return prompts
    half = seeds.high - seeds.value
    low, high = (float(np.hypot(prompts.value - b, half)) for b in (prompts.low, prompts.high))
    return Interval(prompts.value, prompts.value - low, prompts.value + high)


def seeds_interval(
    values: Shaped[np.ndarray, "seeds n"], seed: int = 0, bounds: Bounds | None = None
) -> Interval:
    """Returns the mean over seeds and prompts; each seed has a value for each prompt."""
    x = np.asarray(values, np.float64)
    found = over_seeds(mean_interval(x.mean(axis=0), seed, bounds), x.mean(axis=1))
    return _clipped(found, bounds) if bounds else found


def _clipped(interval: Interval, bounds: Bounds) -> Interval:
    low, high = bounds
    return Interval(interval.value, max(interval.low, low), min(interval.high, high))


def _bounded(x: Values, bounds: Bounds, seed: int) -> Interval:
    """Returns Gaffke's interval: the mean under random weights of the values and of one bound.

    The weights are uniform on the simplex. The bound stands for what the sample may have missed.
    """
    low, high = bounds
    if x.min() < low or x.max() > high:
        raise ValueError(f"values lie in [{x.min():g}, {x.max():g}], not within [{low}, {high}]")
    n, mean = x.size, float(x.mean())
    if np.isin(x, bounds).all():
        from scipy import special

        k = int(np.sum(x == high))
        ends = (
            special.betaincinv(k, n - k + 1, TAIL) if k else 0.0,
            special.betaincinv(k + 1, n - k, 1 - TAIL) if k < n else 1.0,
        )
        return Interval(mean, *(float(low + (high - low) * end) for end in ends))
    weights = np.random.default_rng(seed).standard_exponential((DRAWS, n + 1))
    total = weights.sum(axis=1)
    inside = weights[:, 1:] @ x
    below = np.quantile((inside + weights[:, 0] * low) / total, TAIL)
    above = np.quantile((inside + weights[:, 0] * high) / total, 1 - TAIL)
    return Interval(mean, min(float(below), mean), max(float(above), mean))


def _unbounded(x: Values, seed: int) -> Interval:
    found = t_interval(x)
    deviation = float(x.std(ddof=1)) if x.size > 1 else 0.0
    if x.size < _BOOTSTRAP_FROM or deviation == 0:
        return found
    drawn = x[np.random.default_rng(seed).integers(0, x.size, (DRAWS, x.size))]
    spread = drawn.std(axis=1, ddof=1)
    moved = drawn.mean(axis=1) - found.value
    usable = spread > 1e-9 * deviation
    t = moved[usable] / spread[usable]
    least, most = deviation * np.quantile(t, [_BOOTSTRAP_TAIL, 1 - _BOOTSTRAP_TAIL])
    low, high = found.value - float(most), found.value - float(least)
    return Interval(found.value, min(found.low, low), max(found.high, high))

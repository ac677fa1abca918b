"""How often the intervals of an evaluation hold the true value, by simulation.

    python benchmarks/interval_coverage.py [--prompts 48] [--samples 1000] [--only PART_OF_NAME]

Prints a line per kind of figure: the share of simulated evaluations whose interval has the true
value, with its standard error, and the mean width. 93 % is the least that docs/evaluation.md
promises at 48 prompts.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from gad_jax.metrics.statistics import (
    SHARES,
    UNBOUNDED,
    Bounds,
    Interval,
    difference_interval,
    length_controlled,
    mean_interval,
    seeds_interval,
)

Draw = Callable[[np.random.Generator, int], Interval]
PROMISED = 0.93


class Kind(NamedTuple):
    """A figure with its true value, and what draws an evaluation and returns its interval."""

    name: str
    truth: float
    draw: Draw


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--only", default="", help="kinds whose name has this part")
    given = parser.parse_args()
    least = 1.0
    for kind in kinds():
        if given.only in kind.name:
            share, width = coverage(kind, given.prompts, given.samples)
            least = min(least, share)
            error = np.sqrt(share * (1 - share) / given.samples)
            print(f"{kind.name:52s} {share:.3f} ± {error:.3f}  width {width:.3f}", flush=True)
    print(f"least {least:.3f}, promised {PROMISED}")


def coverage(kind: Kind, prompts: int, samples: int, seed: int = 0) -> tuple[float, float]:
    """Returns the share of samples whose interval has the true value, and the mean width."""
    rng = np.random.default_rng(seed)
    found = [kind.draw(rng, prompts) for _ in range(samples)]
    inside = [one.low <= kind.truth <= one.high for one in found]
    return float(np.mean(inside)), float(np.mean([one.high - one.low for one in found]))


def kinds() -> list[Kind]:
    """Returns all kinds of figures that an evaluation prints with an interval."""
    return [*_rates(), *_means(), *_differences(), *_seeds(), *_equal_length()]


def _mean(name: str, truth: float, bounds: Bounds, values: Callable[..., np.ndarray]) -> Kind:
    """Returns a mean; `values` draws one value per prompt."""
    return Kind(name, truth, lambda g, n: mean_interval(values(g, n), bounds=bounds))


def _rates() -> Iterator[Kind]:
    for p in (0.0035, 0.02, 0.05, 0.1, 0.3, 0.5, 0.8, 0.96, 0.99, 0.9965):
        yield _mean(f"rate {p}", p, SHARES, lambda g, n, p=p: 1.0 * (g.random(n) < p))
    for win, tie in ((0.3, 0.5), (0.05, 0.94), (0.9, 0.09), (0.0, 0.03), (0.97, 0.03)):
        yield _mean(
            f"score with win {win}, tie {tie}",
            win + tie / 2,
            SHARES,
            lambda g, n, win=win, tie=tie: _outcomes(g.random(n), win, tie),
        )
    for a, b in ((20, 20), (2, 8), (0.3, 6), (9, 0.5)):
        yield _mean(
            f"rating or F1, beta({a}, {b})",
            a / (a + b),
            SHARES,
            lambda g, n, a=a, b=b: g.beta(a, b, n),
        )
    rare = 0.05 * 0.4
    yield _mean(
        "F1 that is 0 in 95 %", rare, SHARES, lambda g, n: (g.random(n) < 0.05) * g.beta(4, 6, n)
    )


def _outcomes(uniform: np.ndarray, win: float, tie: float) -> np.ndarray:
    return np.where(uniform < win, 1.0, np.where(uniform < win + tie, 0.5, 0.0))


def _means() -> Iterator[Kind]:
    for sigma in (0.3, 0.7, 1.0):
        yield _mean(
            f"length, lognormal with sigma {sigma}",
            float(np.exp(sigma**2 / 2)),
            UNBOUNDED,
            lambda g, n, sigma=sigma: g.lognormal(0, sigma, n),
        )
    yield _mean("length, exponential", 1.0, UNBOUNDED, lambda g, n: g.exponential(1, n))
    yield _mean(
        "length, 10 % cut at 15 times the others' mean",
        0.1 * 15 + 0.9,
        UNBOUNDED,
        lambda g, n: np.where(g.random(n) < 0.1, 15.0, g.gamma(9, 1 / 9, n)),
    )
    yield _mean("D score, normal", 0.0, UNBOUNDED, lambda g, n: g.normal(0, 1, n))
    yield _mean("D score, Student's t3", 0.0, UNBOUNDED, lambda g, n: g.standard_t(3, n))


def _differences() -> Iterator[Kind]:
    for same, up in ((0.9, 0.08), (0.97, 0.03), (0.4, 0.4), (1.0, 0.0)):

        def wins(g: np.random.Generator, n: int, same: float = same, up: float = up) -> Interval:
            before = g.random(n) < 0.5
            u = g.random(n)
            moved = np.where(u < same, 0, np.where(u < same + up, 1, -1))
            return difference_interval(before + moved, before * 1.0, bounds=(-1.0, 2.0))

        yield Kind(f"difference of wins, {same:.0%} the same", up - (1 - same - up), wins)

    def overlaps(g: np.random.Generator, n: int) -> Interval:
        hard = g.beta(2, 5, n)
        after, before = (np.clip(hard + g.normal(m, 0.08, n), 0, 1) for m in (0.0, 0.0))
        return difference_interval(after, before, bounds=SHARES)

    def lengths(g: np.random.Generator, n: int) -> Interval:
        common = g.lognormal(0, 0.5, n)
        return difference_interval(common * g.lognormal(0, 0.7, n), common, bounds=UNBOUNDED)

    yield Kind("difference of ROUGE-L", 0.0, overlaps)
    yield Kind("difference of lengths", float(np.exp(0.125) * (np.exp(0.245) - 1)), lengths)


def _seeds() -> Iterator[Kind]:
    for count, deviation in ((2, 0.0), (3, 0.03), (3, 0.3), (5, 0.1)):

        def draw(g: np.random.Generator, n: int, s: int = count, d: float = deviation) -> Interval:
            values = g.normal(0, 0.2, n) + g.normal(0, d, (s, 1)) + g.normal(0, 0.1, (s, n))
            return seeds_interval(values, bounds=UNBOUNDED)

        yield Kind(f"{count} seeds that differ by {deviation}", 0.0, draw)
    for rate in (0.3, 0.97):
        yield Kind(
            f"3 seeds, rate {rate}",
            rate,
            lambda g, n, p=rate: seeds_interval(1.0 * (g.random((3, n)) < p), bounds=SHARES),
        )


def _equal_length() -> Iterator[Kind]:
    ratios = {
        "both longer at times": (0.1, 0.5),
        "often shorter": (-0.4, 0.4),
        "short": (-0.8, 0.3),
    }
    for ratio, (mean, sigma) in ratios.items():
        for slope in (0.0, 1.5, 3.0):
            for p in (0.05, 0.4, 0.9):
                for rated in (False, True):

                    def draw(
                        g: np.random.Generator,
                        n: int,
                        law: tuple[float, float] = (mean, sigma),
                        slope: float = slope,
                        p: float = p,
                        rated: bool = rated,
                    ) -> Interval:
                        others = g.lognormal(6.5, 0.5, n)
                        lengths = others * g.lognormal(*law, n)
                        term = np.tanh((lengths - others) / (lengths - others).std(ddof=1))
                        chance = 1 / (1 + (1 - p) / p * np.exp(-slope * term))
                        ratings = g.beta(12 * chance, 12 * (1 - chance))
                        y = ratings if rated else 1.0 * (g.random(n) < chance)
                        return length_controlled(y, lengths, others)

                    what = "ratings" if rated else "wins"
                    yield Kind(f"equal length, {ratio}, slope {slope}, {what} {p}", p, draw)


if __name__ == "__main__":
    main()

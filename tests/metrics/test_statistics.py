"""Agreement of annotators, by hand."""

import math

import pytest

from gad_jax.metrics import statistics


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

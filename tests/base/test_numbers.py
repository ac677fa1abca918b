"""The rounding to float32 against numpy's."""

import math

import numpy as np
import pytest

from gad_jax.base.numbers import LEAST, as_float32


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1 / 3, 1e-8, 3.4e38, -1e38, 0.99999999999, 7])
def test_a_number_within_range_is_numpys_float32(value: int | float) -> None:
    assert as_float32(value) == float(np.float32(value))


def test_the_ends_of_the_range() -> None:
    assert as_float32(1e39) == as_float32(10**400) == math.inf
    assert as_float32(-1e39) == -math.inf
    assert as_float32(math.inf) == math.inf
    assert math.isnan(as_float32(math.nan))
    assert as_float32(LEAST) == float(np.finfo(np.float32).tiny)
    assert as_float32(LEAST / 2) == as_float32(1e-50) == 0

"""The mix of a reward, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core.rewards import Mix, mixed, normalised

NAN = float("nan")
SCORES = jnp.array([[1.0, 3.0], [5.0, 5.0]])
TERM = jnp.array([[0.0, 4.0], [2.0, 6.0]])


def test_normalised_by_group_and_by_batch() -> None:
    half = 1 / np.sqrt(2)  # two values are ± 1/√2 unbiased standard deviations from their mean
    by_group = normalised(TERM, "group", 0.0)
    np.testing.assert_allclose(by_group, [[-half, half]] * 2, rtol=1e-6)
    deviation = np.sqrt(np.mean(np.square([3, 1, 1, 3])) * 4 / 3)
    by_batch = normalised(TERM, "batch", 0.0)
    np.testing.assert_allclose(by_batch * deviation, [[-3, 1], [-1, 3]], rtol=1e-6)
    np.testing.assert_array_equal(normalised(TERM, "none"), TERM)
    np.testing.assert_array_equal(normalised(SCORES, "group")[1], [0, 0])  # all the same


def test_terms_are_weighted_and_clipped_after_they_are_normalised() -> None:
    mix = Mix(2.0, (0.5, 0.0, -1.0), "none", 3.0)
    ignored = jnp.full((2, 2), NAN)  # a weight of 0: looked at alone
    found = mixed(mix, SCORES, jnp.stack([TERM, ignored, jnp.ones((2, 2))]))
    np.testing.assert_array_equal(found, [[2 + 0 - 1, 6 + 1.5 - 1], [10 + 1 - 1, 10 + 1.5 - 1]])
    alone = mixed(Mix(0.0, (0.5,), "none", np.inf), None, TERM[None])
    np.testing.assert_array_equal(alone, 0.5 * TERM)


@pytest.mark.parametrize("how", ["group", "batch", "none"])
def test_a_value_that_is_not_finite_costs_its_sample_alone(how) -> None:
    three = jnp.array([[0.0, 4.0, NAN], [2.0, 6.0, 1.0]])
    scores = jnp.array([[1.0, 2.0, 3.0], [1.0, jnp.inf, 3.0]])
    found = mixed(Mix(1.0, (1.0,), how, 2.0), scores, three[None])
    np.testing.assert_array_equal(np.isfinite(found), [[True, True, False], [True, False, True]])
    if how == "group":
        pair = normalised(jnp.array([[0.0, 4.0]]), how)[0]
        np.testing.assert_allclose(normalised(three, how)[0, :2], pair, rtol=1e-6)

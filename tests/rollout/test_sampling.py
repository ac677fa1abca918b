"""Draws against the exact distribution; what may never be drawn never is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gad_jax.rollout.sampling import (
    GREEDY,
    RowSamplers,
    Sampler,
    sample,
    sample_rows,
    shape_logits,
    thresholds,
)

DRAWS = 10_000
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))

SAMPLERS = [
    Sampler(),
    Sampler(temperature=0.8),
    Sampler(temperature=2.0),
    Sampler(top_k=7),
    Sampler(top_p=0.6),
    Sampler(temperature=0.7, top_k=40, top_p=0.9),
    Sampler(min_p=0.2),
    Sampler(temperature=0.9, top_k=50, top_p=0.95, min_p=0.05),
]

draw = jax.jit(sample, static_argnames="sampler")


def logits_row(seed: int, vocabulary: int) -> np.ndarray:
    return (2 * np.random.default_rng(seed).normal(size=vocabulary)).astype(np.float32)


def exact(logits: np.ndarray, sampler: Sampler) -> np.ndarray:
    """Returns the sampling distribution in float64, by the definitions; no ties are expected."""
    weights = np.exp(logits.astype(np.float64) / sampler.temperature)
    order = np.argsort(-weights)
    if sampler.top_k:
        weights[order[sampler.top_k :]] = 0
    weights /= weights.sum()
    held = np.cumsum(weights[order])
    weights[order[1:][held[:-1] >= sampler.top_p]] = 0
    weights[weights < sampler.min_p * weights.max()] = 0
    return weights / weights.sum()


def draws(logits: np.ndarray, sampler: Sampler, uniform: np.ndarray) -> tuple[np.ndarray, ...]:
    rows = np.broadcast_to(logits, (len(uniform), len(logits)))
    return jax.device_get(draw(rows, uniform.astype(np.float32), sampler))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_chi_square_against_the_exact_distribution(sampler: Sampler) -> None:
    # 300 is not a multiple of the block of 256
    logits = logits_row(0, 300)
    wanted = exact(logits, sampler)
    tokens, _ = draws(logits, sampler, np.random.default_rng(1).random(DRAWS))
    counts = np.bincount(tokens, minlength=300)
    assert (counts[wanted == 0] == 0).all()
    # Cells that expect fewer than 5 go into one, as the test's approximation asks.
    rare = wanted * DRAWS < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(wanted[~rare], wanted[rare].sum()) * DRAWS
    used = expected > 0
    assert stats.chisquare(observed[used], expected[used]).pvalue > 0.01


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evenly_spread_numbers_hit_every_token_in_proportion(sampler: Sampler) -> None:
    logits = logits_row(2, 515)
    wanted = exact(logits, sampler)
    tokens, _ = draws(logits, sampler, (np.arange(DRAWS) + 0.5) / DRAWS)
    # A token owns one interval: at each of its two ends, one number more or less.
    assert (np.abs(np.bincount(tokens, minlength=515) - wanted * DRAWS) <= 2).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_logprob_is_that_of_the_exact_renormalised_distribution(sampler: Sampler) -> None:
    logits = logits_row(3, 300)
    tokens, logprobs = draws(logits, sampler, np.random.default_rng(4).random(DRAWS))
    assert logprobs.dtype == np.float32
    # float32: sums of 300 terms, and exponents of order ten
    np.testing.assert_allclose(logprobs, np.log(exact(logits, sampler)[tokens]), atol=5e-6)


@pytest.mark.parametrize("vocabulary", [3, 255, 256, 257, 1000])
@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.5, 3, 0.9)])
def test_a_token_of_probability_zero_is_never_drawn(vocabulary: int, sampler: Sampler) -> None:
    logits = logits_row(5, vocabulary)
    alive = np.zeros(vocabulary, bool)
    alive[np.random.default_rng(6).choice(np.arange(1, vocabulary - 1), 1)] = True
    alive[vocabulary // 2] = True
    logits[~alive] = -np.inf  # so the first and the last token are impossible
    edges = np.asarray([0, np.finfo(np.float32).tiny, 0.5, 1 - 2**-20, BELOW_ONE])
    numbers = np.concatenate([edges, np.random.default_rng(7).random(495)])
    tokens, logprobs = draws(logits, sampler, numbers)
    assert alive[tokens].all()
    assert np.isfinite(logprobs).all()


def test_the_ends_of_the_unit_interval_hit_the_first_and_the_last_possible_token() -> None:
    logits = logits_row(8, 700)
    logits[:300] = logits[650:] = -np.inf
    tokens, _ = draws(logits, Sampler(), np.asarray([0, BELOW_ONE]))
    assert tokens.tolist() == [300, 649]


def test_a_large_vocabulary_keeps_small_probabilities() -> None:
    """Half of the mass lies on the first token, the rest evenly on 152 thousand others."""
    vocabulary, count = 152_000, 64
    logits = np.zeros(vocabulary, np.float32)
    logits[0] = np.log(vocabulary - 1)
    uniform = 0.5 + 0.5 * (np.arange(count) + 0.5) / count
    tokens, logprobs = draws(logits, Sampler(), uniform)
    wanted = 1 + (2 * uniform - 1) * (vocabulary - 1)
    # A float32 number near 1 is a multiple of 6e-8: 0.02 tokens here. Sums of 594 blocks add some.
    assert np.abs(tokens - wanted).max() <= 2
    np.testing.assert_allclose(logprobs, -np.log(2 * (vocabulary - 1)), atol=1e-4)


def test_rows_are_drawn_independently() -> None:
    logits = np.stack([logits_row(seed, 300) for seed in range(4)])
    uniform = np.random.default_rng(9).random(4).astype(np.float32)
    tokens, logprobs = draw(logits, uniform, Sampler())
    for row in range(4):
        alone = draw(logits[row : row + 1], uniform[row : row + 1], Sampler())
        assert tokens[row] == alone[0][0]
        np.testing.assert_allclose(logprobs[row], alone[1][0], rtol=1e-6)


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = np.asarray([[0, 3, 1, 3], [-1, -2, -np.inf, -4]], np.float32)
    tokens, logprobs = draw(logits, np.asarray([0.9, 0.9], np.float32), GREEDY)
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[jnp.arange(2), tokens], 1e-6)


@pytest.mark.parametrize("top_k", [5, 6, 10_000])
def test_top_k_beyond_the_vocabulary_keeps_all(top_k: int) -> None:
    logits = jnp.asarray(logits_row(10, 5))[None]
    np.testing.assert_array_equal(shape_logits(logits, Sampler(top_k=top_k)), logits)


def test_top_k_one_is_greedy_with_certainty() -> None:
    logits = logits_row(11, 300)
    tokens, logprobs = draws(logits, Sampler(top_k=1), np.asarray([0, 0.5, BELOW_ONE]))
    assert set(tokens.tolist()) == {int(np.argmax(logits))}
    np.testing.assert_array_equal(logprobs, 0)


def kept(logits: list[float], sampler: Sampler) -> list[bool]:
    shaped = shape_logits(jnp.asarray([logits], jnp.float32), sampler)
    return np.isfinite(shaped[0]).tolist()


def test_tokens_that_tie_with_the_last_one_kept_are_kept() -> None:
    assert kept([1, 2, 1, 0], Sampler(top_k=2)) == [True, True, True, False]
    # probabilities 1/4 each: two hold a half, the others tie with them
    assert kept([1, 1, 1, 1], Sampler(top_p=0.5)) == [True] * 4


def test_top_p_keeps_the_smallest_set_that_holds_the_mass() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
    assert kept(logits, Sampler(top_p=0.49)) == [True, False, False, False]
    assert kept(logits, Sampler(top_p=0.51)) == [True, True, False, False]
    assert kept(logits, Sampler(top_p=0.81)) == [True, True, True, False]
    assert kept(logits, Sampler(top_p=0.96)) == [True] * 4
    # of what top-k left: 5/8, 3/8
    assert kept(logits, Sampler(top_k=2, top_p=0.6)) == [True, False, False, False]


def test_the_temperature_comes_before_top_p() -> None:
    # at temperature 1/2 the probabilities are squared: 0.64 / 0.68 of the first token
    logits = np.log([0.8, 0.2]).tolist()
    assert kept(logits, Sampler(top_p=0.9)) == [True, True]
    assert kept(logits, Sampler(temperature=0.5, top_p=0.9)) == [True, False]


def test_half_precision_logits_are_drawn_in_float32() -> None:
    logits = jnp.asarray(logits_row(12, 300), jnp.bfloat16)[None]
    uniform = jnp.asarray([0.3], jnp.float32)
    half, full = (draw(x, uniform, Sampler()) for x in (logits, logits.astype(jnp.float32)))
    assert half[1].dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, half, full)


def test_a_temperature_by_which_nothing_can_be_divided_is_greedy() -> None:
    logits = logits_row(3, 300)
    for temperature in (1e-38, 1e-320):
        sampler = Sampler(temperature=temperature, top_p=0.9)
        tokens, logprobs = draws(logits, sampler, np.asarray([0.0, 0.999]))
        assert (tokens == logits.argmax()).all()
        rows = RowSamplers.of(sampler, Sampler())
        assert rows.temperature.tolist() == [0, 1]
        alone = jax.jit(sample_rows)(np.asarray([logits, logits]), np.float32([0.5, 0.5]), rows)
        assert alone[0][0] == logits.argmax()
        assert np.allclose(alone[1][0], logprobs[0])


def test_the_smallest_limits_keep_the_likeliest() -> None:
    """In float32 they are 0."""
    extremes = (1e-300, 5e-324, 1e-45, 1e-38, 1e-30, 1e-7)
    narrow = [Sampler(top_p=extreme) for extreme in extremes]
    narrow += [Sampler(1e-6, top_p=extreme) for extreme in extremes]
    wide = [Sampler(100.0, top_k=10**30, min_p=extreme) for extreme in extremes]
    samplers = [*narrow, *wide]
    logits = np.stack([logits_row(seed, 515) for seed in range(len(samplers))])
    uniform = np.full(len(samplers), 0.999, np.float32)
    tokens, logprobs = jax.jit(sample_rows)(logits, uniform, RowSamplers.of(*samplers))
    likeliest = logits.argmax(axis=-1)
    np.testing.assert_array_equal(tokens[: len(narrow)], likeliest[: len(narrow)])
    np.testing.assert_allclose(logprobs[: len(narrow)], 0, atol=1e-6)
    np.testing.assert_allclose(logprobs[len(narrow) :], -np.log(515), atol=0.2)
    tokens, logprobs = draws(logits[0], narrow[0], uniform)
    np.testing.assert_array_equal(tokens, likeliest[0])
    np.testing.assert_allclose(logprobs, 0, atol=1e-6)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s.truncates])
def test_a_threshold_gives_the_tokens_kept_and_leaves_room_for_rounding(sampler: Sampler) -> None:
    logits = jnp.stack([jnp.asarray(logits_row(seed, 300)) for seed in range(8)])
    shaped = shape_logits(logits, sampler)
    limits = np.asarray(thresholds(logits, shaped, sampler))[:, None]
    wanted = np.isfinite(shaped)
    every = np.asarray(logits) / np.float32(sampler.temperature)
    np.testing.assert_array_equal(every >= limits, wanted)
    # halfway: the nearest token on each side is equally far
    below = limits[:, 0] - np.where(wanted, -np.inf, every).max(axis=1)
    above = np.where(wanted, every, np.inf).min(axis=1) - limits[:, 0]
    np.testing.assert_allclose(below, above, rtol=1e-3)


def test_thresholds_of_neighbouring_floats_of_ties_and_of_all_tokens() -> None:
    near = np.nextafter(np.float32(1), np.float32(2))
    for row, count in (([1, near, 0, 0], 1), ([1, 2, 1, 0], 2), ([1, 1, 1, 1], 2)):
        logits = jnp.asarray([row], jnp.float32)
        sampler = Sampler(top_k=count)
        shaped = shape_logits(logits, sampler)
        limit = thresholds(logits, shaped, sampler)
        np.testing.assert_array_equal(logits >= limit[:, None], np.isfinite(shaped))


@pytest.mark.parametrize("sampler", [Sampler(), GREEDY])
def test_no_array_of_the_vocabulary_is_stored(sampler: Sampler) -> None:
    rows, vocabulary = 4, 32_000
    shapes = jax.ShapeDtypeStruct((rows, vocabulary), jnp.float32)
    uniform = jax.ShapeDtypeStruct((rows,), jnp.float32)
    found = draw.lower(shapes, uniform, sampler).compile().memory_analysis()
    assert found.temp_size_in_bytes < rows * vocabulary * 4 / 10

"""The equations against numbers worked out by hand, and the invariants that they must keep."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core.objectives import (
    bradley_terry_loss,
    centred,
    clip_binds,
    clipped_surrogate,
    cross_entropy_loss,
    group_advantages,
    kl_k3,
    length_slope,
    masked_mean,
    probability_ratio,
    smoothed,
)

LN2 = math.log(2)


def array(*values: float) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(found: jax.Array, wanted: object, tolerance: float = 1e-6) -> None:
    """Float32 keeps seven digits; every test value is of order one."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=tolerance, atol=1e-7)


def test_masked_mean_by_hand() -> None:
    x, mask = array(1, 2, 3, 6), jnp.asarray([True, False, True, False])
    close(masked_mean(x, mask), 2.0)


def test_masked_mean_ignores_what_is_not_finite_under_the_mask() -> None:
    x, mask = array(1, math.nan, 3, math.inf), jnp.asarray([True, False, True, False])
    close(masked_mean(x, mask), 2.0)
    gradient = jax.grad(lambda x: masked_mean(x, mask))(x)
    np.testing.assert_array_equal(gradient, [0.5, 0, 0.5, 0])


def test_masked_mean_of_nothing_is_zero() -> None:
    assert masked_mean(array(1, math.nan), jnp.zeros(2, bool)) == 0


def test_advantages_by_hand() -> None:
    # mean 2.5; squares 2.25 .25 .25 2.25 sum to 5; unbiased variance 5 / 3
    std = math.sqrt(5 / 3)
    found = group_advantages(jnp.asarray([[1.0, 2.0, 3.0, 4.0]]))
    close(found, [[-1.5 / std, -0.5 / std, 0.5 / std, 1.5 / std]], 2e-6)


def test_the_epsilon_is_added_to_the_standard_deviation() -> None:
    found = group_advantages(jnp.asarray([[1.0, 2.0, 3.0]]), eps=1.0)
    close(found, [[-0.5, 0.0, 0.5]])


def test_centred_rewards_keep_their_unit() -> None:
    rewards = jnp.asarray([[1.0, 2.0, 6.0], [0.1, 0.1, 0.1], [math.nan, 5.0, 7.0]])
    close(centred(rewards), [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0], [0.0, -1.0, 1.0]], 2e-6)


@pytest.mark.parametrize("samples", [2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(samples: int) -> None:
    # A rounded mean differs from the rewards, and the deviation would be divided by itself.
    rewards = jnp.repeat(array(0.1, 12.3, -1e4, 1e-3)[:, None], samples, axis=1)
    np.testing.assert_array_equal(group_advantages(rewards), jnp.zeros((4, samples)))


def test_a_reward_that_is_not_finite_is_left_out_of_its_group() -> None:
    rewards = jnp.asarray([[1.0, math.nan, 3.0], [math.inf, 5.0, 7.0], [1.0, 2.0, 3.0]])
    half = 1 / math.sqrt(2)
    close(group_advantages(rewards), [[-half, 0, half], [0, -half, half], [-1, 0, 1]], 2e-6)


def test_a_group_without_two_finite_rewards_gets_zero() -> None:
    rewards = jnp.asarray([[math.nan, math.nan], [math.nan, 4.2], [-math.inf, math.inf]])
    np.testing.assert_array_equal(group_advantages(rewards), np.zeros((3, 2)))


def test_advantages_do_not_change_under_a_positive_affine_map() -> None:
    rewards = jnp.asarray(normal(3, 6, 8))
    # The epsilon weighs 1e-6 / a against a standard deviation of about one.
    for a, b in ((4.0, -3.0), (0.25, 10.0)):
        np.testing.assert_allclose(
            group_advantages(a * rewards + b), group_advantages(rewards), atol=2e-5
        )


def scores(seed: int, *shape: int) -> np.ndarray:
    """Multiples of 1/64: adding a small integer is exact in float32."""
    return np.round(64 * normal(seed, *shape)) / 64


def test_an_offset_per_prompt_changes_neither_loss_nor_advantages() -> None:
    teacher, student, offset = scores(4, 6), scores(5, 6, 8), np.arange(-3, 3, dtype=np.float32)
    before = bradley_terry_loss(jnp.asarray(teacher), jnp.asarray(student))
    after = bradley_terry_loss(
        jnp.asarray(teacher + offset), jnp.asarray(student + offset[:, None])
    )
    np.testing.assert_array_equal(after, before)
    np.testing.assert_allclose(
        group_advantages(jnp.asarray(student + offset[:, None])),
        group_advantages(jnp.asarray(student)),
        atol=1e-6,  # the mean of eight is rounded at another magnitude
    )


def test_bradley_terry_by_hand() -> None:
    found = bradley_terry_loss(array(0, 1), jnp.asarray([[0.0, LN2], [1.0, 1 - math.log(3)]]))
    # softplus(0), softplus(ln 2); softplus(0), softplus(-ln 3)
    close(found, [[LN2, math.log(3)], [LN2, math.log(4 / 3)]])


def test_bradley_terry_of_equal_scores_is_ln_2() -> None:
    level = jnp.asarray(normal(6, 5))
    close(
        bradley_terry_loss(level, jnp.broadcast_to(level[:, None], (5, 3))), jnp.full((5, 3), LN2)
    )


def test_the_gradient_of_a_pair_sums_to_zero() -> None:
    teacher, student = jnp.asarray(normal(7, 5)), jnp.asarray(normal(8, 5, 3))
    to_teacher, to_student = jax.grad(lambda t, s: bradley_terry_loss(t, s).sum(), (0, 1))(
        teacher, student
    )
    np.testing.assert_allclose(to_teacher + to_student.sum(axis=1), np.zeros(5), atol=1e-6)
    close(to_student, jax.nn.sigmoid(student - teacher[:, None]))


@pytest.mark.parametrize("loss", [bradley_terry_loss, cross_entropy_loss])
def test_discriminator_losses_are_finite_at_huge_scores(loss: object) -> None:
    teacher, student = array(-1e4, 1e4), jnp.asarray([[1e4], [-1e4]], jnp.float32)
    close(loss(teacher, student), [[2e4], [0.0]])
    to_teacher, to_student = jax.grad(lambda t, s: loss(t, s).sum(), (0, 1))(teacher, student)
    close(to_teacher, [-1.0, 0.0])
    close(to_student, [[1.0], [0.0]])


@pytest.mark.parametrize("loss", [bradley_terry_loss, cross_entropy_loss])
def test_discriminator_losses_work_in_float32(loss: object) -> None:
    teacher, student = jnp.asarray([12.0], jnp.bfloat16), jnp.asarray([[12.0625]], jnp.bfloat16)
    found = loss(teacher, student)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(
        found, loss(teacher.astype(jnp.float32), student.astype(jnp.float32))
    )


def test_cross_entropy_by_hand() -> None:
    # σ(ln 3) = 3/4: -log 3/4 for the teacher, -log(1 - 3/4) for the first sample, 1/2 the second
    found = cross_entropy_loss(array(math.log(3)), jnp.asarray([[math.log(3), 0.0]]))
    close(found, [[math.log(4 / 3) + math.log(4), math.log(4 / 3) + LN2]])


def test_the_optimum_of_a_tabular_discriminator_is_the_log_ratio() -> None:
    """For teacher p and student q, the expected loss is least at D = log p/q + c(x)."""
    p = jax.nn.softmax(jnp.asarray(normal(9, 2, 6)), axis=1)
    q = jax.nn.softmax(jnp.asarray(normal(10, 2, 6)), axis=1)

    def expected(table: jax.Array) -> jax.Array:
        every_pair = jax.vmap(
            lambda scores: bradley_terry_loss(scores, jnp.broadcast_to(scores, (6, 6)))
        )
        return jnp.sum(every_pair(table) * p[:, :, None] * q[:, None, :])

    step = jax.jit(lambda _, table: table - 5 * jax.grad(expected)(table))
    offset = jnp.asarray([[1.0], [-2.0]])
    table = jax.lax.fori_loop(0, 1000, step, jnp.zeros((2, 6)) + offset)
    found = table - table.mean(axis=1, keepdims=True)
    wanted = jnp.log(p / q) - jnp.log(p / q).mean(axis=1, keepdims=True)
    # Descent stops where float32 gradients vanish: 1e-7 over a curvature of about 1e-2.
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    # The loss does not see the offset, so descent leaves it where it was.
    np.testing.assert_allclose(table.mean(axis=1, keepdims=True), offset, atol=1e-4)


def test_probability_ratio_is_limited() -> None:
    found = probability_ratio(array(0, 100, -100, LN2), jnp.zeros(4), 20.0)
    close(found, [1.0, math.exp(20), math.exp(-20), 2.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (2.0, 1.0, -1.2),  # clipped above
        (0.5, 1.0, -0.5),  # worse than before: no clip
        (2.0, -1.0, 2.0),
        (0.5, -1.0, 0.8),  # clipped below
        (10.0, -1.0, 3.0),  # dual clip
        (10.0, -2.0, 6.0),
        (10.0, 0.0, 0.0),
    ],
)
def test_surrogate_by_hand(ratio: float, advantage: float, loss: float) -> None:
    found = clipped_surrogate(array(math.log(ratio)), array(0), array(advantage))
    close(found, [loss])


def test_the_clips_are_where_they_are_set() -> None:
    surrogate = functools.partial(clipped_surrogate, low=0.1, high=0.5, dual=2.0)
    ratios, advantages = array(9, 0.5, 9), array(1, -1, -1)
    close(surrogate(jnp.log(ratios), jnp.zeros(3), advantages), [-1.5, 0.9, 2.0])


@pytest.mark.parametrize("clips", [{}, {"low": 0.1, "high": 0.5, "dual": 2.0}])
def test_a_clip_binds_where_the_surrogate_has_no_gradient(clips: dict[str, float]) -> None:
    ratios = array(0.3, 0.85, 0.95, 1.0, 1.1, 1.3, 1.9, 2.5, 4.0)
    advantages = array(1.5, -0.7, 0.0)
    logprobs, each = (x.ravel() for x in jnp.meshgrid(jnp.log(ratios), advantages))
    slopes = jax.vmap(jax.grad(lambda x, a: clipped_surrogate(x, jnp.float32(0), a, **clips)))
    still = np.asarray(slopes(logprobs, each) == 0)
    binds = np.asarray(clip_binds(jnp.exp(logprobs), each, **clips))
    np.testing.assert_array_equal(binds, still & np.asarray(each != 0))
    assert binds.sum() >= 5


def test_on_policy_the_clip_never_binds_and_the_gradient_is_reinforce() -> None:
    logprobs, advantages = jnp.asarray(normal(11, 4, 5) - 3), jnp.asarray(5 * normal(12, 4, 5))

    def surrogate(logprobs: jax.Array) -> jax.Array:
        return clipped_surrogate(logprobs, jax.lax.stop_gradient(logprobs), advantages)

    np.testing.assert_array_equal(surrogate(logprobs), -advantages)
    gradient = jax.grad(lambda x: surrogate(x).sum())(logprobs)
    reinforce = jax.grad(lambda x: -(advantages * x).sum())(logprobs)
    np.testing.assert_array_equal(gradient, reinforce)


def test_k3_by_hand() -> None:
    found = kl_k3(array(0, 0, -1), array(LN2, -LN2, -1))
    close(found, [1 - LN2, LN2 - 0.5, 0.0])


def test_k3_is_never_negative_and_capped() -> None:
    d = jnp.linspace(-50, 50, 10_001)
    found = kl_k3(jnp.zeros_like(d), d)
    # exp(d) - d - 1 cancels near 0: one unit in the last place of 1 may be left.
    assert found.min() >= -1.2e-7
    assert found.max() == 10
    np.testing.assert_array_equal(kl_k3(array(0, 0), array(1e4, -1e4)), [10, 10])
    close(kl_k3(array(0), array(1e4), limit=3.0, maximum=100.0), [math.exp(3) - 4])


def test_k3_pulls_the_policy_to_the_reference_but_not_beyond_the_cap() -> None:
    gradient = jax.grad(lambda x: kl_k3(x, array(LN2, -LN2, 0, 9, -90)).sum())(jnp.zeros(5))
    close(gradient, [-1.0, 0.5, 0.0, 0.0, 0.0])


LOSSES = [bradley_terry_loss, cross_entropy_loss]


@pytest.mark.parametrize("loss", LOSSES)
def test_smoothing_mixes_the_loss_with_that_of_the_labels_exchanged(loss: Any) -> None:
    teacher, student = jnp.asarray(normal(1, 6)), jnp.asarray(normal(2, 6, 1))
    exchanged = loss(student[:, 0], teacher[:, None])
    wanted = 0.8 * loss(teacher, student) + 0.2 * exchanged
    close(smoothed(loss(teacher, student), teacher, student, 0.2), wanted)


def test_smoothed_bradley_terry_is_least_at_a_finite_margin() -> None:
    def slope(margin: float) -> jax.Array:
        def at(m: jax.Array) -> jax.Array:
            student = array(0)[None]
            return smoothed(bradley_terry_loss(m[None], student), m[None], student, 0.1).sum()

        return jax.grad(at)(jnp.float32(margin))

    close(slope(math.log(0.9 / 0.1)), 0.0)
    assert slope(1.0) < 0 < slope(3.0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equal_texts_teach_nothing_without_a_label_of_their_own(
    loss: Any, smoothing: float
) -> None:
    """A tie is a pair of the same text, so its scores move together: a target of 1/2 has the same
    gradient in what both have in common."""

    def both(shared: jax.Array, tie: bool) -> jax.Array:
        teacher, student = shared[None], shared[None, None]
        target = 0.5 if tie else smoothing
        return smoothed(loss(teacher, student), teacher, student, target).sum()

    for score in (-2.0, 0.0, 3.0):
        found, wanted = (jax.grad(both)(jnp.float32(score), tie) for tie in (False, True))
        close(found, wanted)
        if loss is bradley_terry_loss:
            close(found, 0.0)


def test_the_slope_of_length_is_a_logistic_regression() -> None:
    """Its derivative is zero, by hand, for lengths that tell much, nothing and all."""
    rng = np.random.default_rng(0)
    for longer in (rng.normal(5, 10, (8, 4)), rng.normal(0, 1e4, (3, 7)), np.full((2, 2), 50.0)):
        c = float(length_slope(jnp.asarray(longer)))
        scale = np.sqrt(np.mean(longer**2))
        d = longer / scale
        derivative = -np.mean(d / (1 + np.exp(c * scale * d))) + 0.01 * c * scale
        assert abs(derivative) < 1e-5
    assert length_slope(jnp.full((2, 2), 50.0)) > 0  # the teacher's are longer: length says so
    assert length_slope(jnp.full((2, 2), -50.0)) < 0
    assert abs(length_slope(jnp.zeros((3, 2)))) < 1e-6
    assert abs(length_slope(array(-7, 7))) < 1e-6


def test_lengths_that_tell_all_pairs_apart_leave_little_to_learn() -> None:
    """The gradient of the pair loss shrinks to what length does not say."""
    longer = jnp.asarray([[40.0, 60.0], [50.0, 30.0]])

    def gradient(offset: jax.Array) -> jax.Array:
        return jax.grad(lambda t: bradley_terry_loss(t, jnp.zeros((2, 2)) - offset).sum())(
            jnp.zeros(2)
        )

    without, with_lengths = gradient(jnp.zeros((2, 2))), gradient(length_slope(longer) * longer)
    close(without, [-1.0, -1.0])
    assert (jnp.abs(with_lengths) < 0.2).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.2, 0.4])
@pytest.mark.parametrize(("mean", "spread"), [(-6, 0), (6, 3), (-40, 40), (-3, 20)])
def test_smoothed_labels_and_lengths_leave_the_teacher_ahead(
    smoothing: float, mean: float, spread: float
) -> None:
    """Where length tells who wrote a response, the rest of the margin must not turn against it."""
    longer = jnp.asarray(np.random.default_rng(0).normal(mean, spread, (64, 4)))
    offset = length_slope(longer, smoothing) * longer

    def loss(margin: jax.Array) -> jax.Array:
        teacher, student = jnp.full(64, margin), -offset
        return smoothed(bradley_terry_loss(teacher, student), teacher, student, smoothing).mean()

    assert jax.grad(loss)(jnp.float32(0)) < 0

"""What becomes of scores that are not finite, and of samples that are all the same."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core import forward, losses, packing, steps
from gad_jax.distributed import sharding
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.sampling import Sampler, shape_logits, thresholds
from gad_jax.types import PackedRows, Params, Segments
from tests.core.builders import (
    GAD,
    GENERATOR,
    PROMPTS,
    SAMPLES,
    Outcome,
    close,
    first,
    gradients,
    host,
    identical,
    moved,
    networks,
    put,
    rows,
    start,
    texts,
)
from tests.core.by_hand import advantages_by_hand, all_scores_by_hand, alone, reinforce_by_hand


def with_bad_scores(
    monkeypatch: pytest.MonkeyPatch, bad: list[tuple[int, int]], value: float = np.nan
) -> Outcome:
    """Returns a GAD step in which the scores of (prompt, member) are not finite; 0 is the teacher.

    Where they are travels in the rows, in a part that pairs do not use: one program serves all.
    """
    real = forward.response_scores

    def spoilt(config: DecoderConfig, params: Params, packed: PackedRows) -> jax.Array:
        spoil = packed.sampled_logprobs[packed.ends[..., 0], packed.ends[..., 1]]
        return real(config, params, packed) + spoil

    monkeypatch.setattr(forward, "response_scores", spoilt)
    pairs = rows(texts(), "pairs")
    place = {int(group): number for number, group in enumerate(pairs.groups[0])}
    for prompt, member in bad:
        row, last = pairs.ends[0, place[prompt], member]
        pairs = pairs._replace(sampled_logprobs=pairs.sampled_logprobs.at[0, row, last].set(value))
    # A program that no other test uses: theirs are traced with the real scores.
    program = dataclasses.replace(GAD, kl_coefficient=0.0, log_ratio_max=21.0)
    return host(steps.gad_step(program, start(program), pairs, rows(texts(), "samples")))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_costs_its_sample_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    found = with_bad_scores(monkeypatch, [(3, 2)], value)
    assert found.state.skips.tolist() == [0, 0]
    assert found.metrics["discriminator/nonfinite_scores"] == 1
    assert all(np.isfinite(metric) for metric in found.metrics.values())
    # The generator: the advantages of the two samples that are left of prompt 3 are ±1/√2.
    teacher, rewards = (scores.copy() for scores in all_scores_by_hand())
    advantages = advantages_by_hand().copy()
    left = [0, 2]
    spread = rewards[3, left].std(ddof=1)
    advantages[3, left] = (rewards[3, left] - rewards[3, left].mean()) / (spread + 1e-6)
    advantages[3, 1] = 0
    np.testing.assert_allclose(np.abs(advantages[3, left]), 0.5**0.5, rtol=1e-4)
    generator, other, _ = (put(network) for network in networks())
    x = alone(texts(), "samples")
    wanted = reinforce_by_hand(generator, other, x, jnp.asarray(advantages.ravel()), 0.0, 0.0)
    close(gradients(found)[0], wanted, 2e-5)
    # The discriminator: the mean over all pairs, of which that one counts nothing.
    keep = np.ones_like(rewards)
    keep[3, 1] = 0
    each = np.log1p(np.exp(rewards - teacher)) * keep
    np.testing.assert_allclose(found.metrics["discriminator/loss"], each.mean(), rtol=1e-5)
    margin = ((teacher - rewards) * keep).sum() / keep.sum()
    np.testing.assert_allclose(found.metrics["discriminator/margin"], margin, atol=1e-5)
    np.testing.assert_allclose(
        found.metrics["reward/mean"], (rewards * keep).sum() / keep.sum(), atol=1e-5
    )


def test_a_group_without_finite_scores_is_dead_and_the_step_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = with_bad_scores(monkeypatch, [(3, member) for member in range(1, SAMPLES + 1)])
    assert found.state.skips.tolist() == [0, 0]
    assert found.metrics["advantage/dead_groups"] == 1 / PROMPTS
    assert found.metrics["discriminator/nonfinite_scores"] == SAMPLES
    assert moved(found.state.generator, networks()[0])
    assert moved(found.state.discriminator, networks()[2])


def test_a_discriminator_with_half_of_its_scores_not_finite_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = [(prompt, m) for prompt in range(PROMPTS // 2) for m in range(1, SAMPLES + 1)]
    found = with_bad_scores(monkeypatch, half)
    assert np.isnan(found.metrics["discriminator/loss"])
    assert found.state.skips.tolist() == [1, 1]
    identical(found.state.generator, networks()[0])
    identical(found.state.discriminator, networks()[2])


def test_samples_that_are_all_the_same_teach_the_generator_nothing() -> None:
    """As when all are empty (an end token alone), or all are cut after the same tokens.

    Their scores differ by rounding, and so do their advantages from 0: but those sum to 0.
    """
    for response in ([1], [5, 6, 7]):
        same = texts()
        group = [np.asarray(response, np.int32)] * (SAMPLES + 1)
        same = same._replace(
            responses=[group] * PROMPTS,
            logprobs=[[np.zeros(len(r), np.float32) for r in group]] * PROMPTS,
        )
        program = dataclasses.replace(GAD, kl_coefficient=0.0)
        state = start(program)
        found = host(steps.gad_step(program, state, rows(same), rows(same, "samples")))
        assert found.metrics["advantage/dead_groups"] == 1
        assert found.metrics["advantage/norm"] < 0.5
        assert found.metrics["generator/gradient_norm"] < 1e-5
        assert all(np.isfinite(metric) for metric in found.metrics.values())
        np.testing.assert_allclose(found.metrics["discriminator/loss"], np.log(2), rtol=1e-6)


# Truncated sampling: all responses of two tokens, enumerated

SMALL = dataclasses.replace(GENERATOR, vocabulary=7, layers=1)
TRUNCATED = dataclasses.replace(
    GAD, generator=SMALL, kl_coefficient=0.7, kl_max=1e6, vocabulary_chunk=16
)
PROMPT = np.asarray([3, 5, 1], np.int32)
RESPONSES = np.asarray([(one, two) for one in range(7) for two in range(7)], np.int32)


def response_logits(params: Params) -> jax.Array:
    """Returns the logits [49 2 V] of both tokens of every response, over the temperature."""
    tokens = np.concatenate([np.tile(PROMPT, (49, 1)), RESPONSES[:, :1]], axis=1)
    positions = np.broadcast_to(np.arange(4, dtype=np.int32), tokens.shape)
    own = np.ones_like(tokens)
    arrays = jax.tree.map(jnp.asarray, (tokens, positions, Segments(own, own)))
    return decoder.logits(SMALL, params, *arrays)[:, 2:] / TRUNCATED.temperature


def expected_loss(
    params: Params, reference: Params, kept: jax.Array, advantages: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns minus the mean advantage, plus the KL from the reference at the prefixes that are
    drawn; and the mean KL to the reference. All of the distributions over the tokens kept.

    The gradient of k3 is that of KL(reference, policy); its value is KL(policy, reference).
    """
    policy, other = (
        jax.nn.log_softmax(jnp.where(kept, response_logits(each), -jnp.inf))
        for each in (params, reference)
    )
    logprobs = jnp.take_along_axis(policy, RESPONSES[..., None], axis=-1)[..., 0]
    drawn = jnp.exp(logprobs.sum(-1))
    loss = -jnp.sum(jnp.where(drawn > 0, drawn * advantages, 0.0))
    both = [jnp.where(kept, each, 0.0) for each in (policy, other)]
    forward, backward = (
        jnp.sum(jnp.exp(a) * (a - b) * kept, axis=-1) for a, b in (both, both[::-1])
    )
    weights = jax.lax.stop_gradient(drawn)[:, None]
    kl = jnp.sum(weights * backward)
    return loss + TRUNCATED.kl_coefficient * kl, jnp.sum(weights * forward)


@jax.jit
def loss_of_all(
    params: Params, reference: Params, rows: PackedRows, drawn: jax.Array, advantages: jax.Array
) -> Any:
    """Returns the gradient of the mean loss of all responses, and the means of its parts."""

    def mean(params: Params) -> Any:
        def of(response: jax.Array) -> Any:
            alone = rows._replace(mask=rows.mask & (rows.sequences == response))
            count = jnp.float32(1)
            return losses.grpo_loss(TRUNCATED, params, alone, count, advantages, reference)

        loss, parts = jax.vmap(of)(jnp.arange(49))
        means = {name: jnp.sum(jnp.where(drawn > 0, drawn * x, 0.0)) for name, x in parts.items()}
        return jnp.sum(jnp.where(drawn > 0, drawn * loss, 0.0)), means

    return jax.grad(mean, has_aux=True)(params)


expected_gradient = jax.jit(jax.grad(expected_loss, has_aux=True))


@pytest.mark.parametrize(
    "sampler", [Sampler(0.8, top_p=0.5), Sampler(0.8, top_p=0.9), Sampler(0.8, top_k=2)]
)
def test_truncated_sampling_gives_the_gradient_of_the_sampling_distribution(
    sampler: Sampler,
) -> None:
    params, reference = (
        jax.tree_util.tree_map_with_path(
            lambda path, x: x if "norm" in sharding.path_name(path) else 10 * x,
            decoder.init(SMALL, jax.random.key(seed)),
        )
        for seed in (0, 1)
    )
    logits = (0.8 * response_logits(params)).reshape(98, 7)
    shaped = shape_logits(logits, sampler)
    kept = (shaped > -jnp.inf).reshape(49, 2, 7)
    assert 0 < np.mean(kept) < 1
    limits = np.asarray(thresholds(logits, shaped, sampler)).reshape(49, 2)
    every = np.asarray(jax.nn.log_softmax(shaped)).reshape(49, 2, 7)
    sampled = np.take_along_axis(every, RESPONSES[..., None], axis=-1)[..., 0]
    drawn = np.exp(sampled.sum(-1))
    np.testing.assert_allclose(drawn.sum(), 1, rtol=1e-5)
    packed = packing.pack(
        [PROMPT], [list(RESPONSES)], [list(sampled)], [list(limits)], row_tokens=64
    )
    rows = first(jax.tree.map(jnp.asarray, packed))
    advantages = jnp.asarray(np.random.default_rng(0).normal(size=49), jnp.float32)

    found, means = loss_of_all(params, reference, rows, jnp.asarray(drawn), advantages)
    wanted, kl = expected_gradient(params, reference, kept, advantages)
    close(found, wanted, 1e-4)
    assert kl > 0.1
    np.testing.assert_allclose(means["kl/reference"], kl, rtol=1e-4)
    assert means["logprobs/gap"] < 1e-5


# Importance weights: all responses of one token, drawn from other weights than those trained


def test_importance_weights_correct_for_the_sampler() -> None:
    """Without a bound, the expected gradient is that of samples of the policy itself, surrogate and
    KL; with one, that of the sampler's probabilities times the bounded weights."""
    policy, reference, sampler = (
        jax.tree_util.tree_map_with_path(
            lambda path, x: x if "norm" in sharding.path_name(path) else 10 * x,
            decoder.init(SMALL, jax.random.key(seed)),
        )
        for seed in (0, 1, 2)
    )
    p, q = (
        np.asarray(jax.nn.softmax(response_logits(each)[:1, 0]))[0] for each in (policy, sampler)
    )
    assert p.shape == (7,)
    ratio, bound = p / q, 1.5
    assert 0 < np.mean(ratio > bound) < 1
    packed = packing.pack(
        [PROMPT], [[np.asarray([token]) for token in range(7)]],
        [[np.log(q[token : token + 1]) for token in range(7)]], row_tokens=32,
    )  # fmt: skip
    rows = first(jax.tree.map(jnp.asarray, packed))
    advantages = jnp.asarray(np.random.default_rng(0).normal(size=7), jnp.float32)

    def expected(drawn: np.ndarray, maximum: float) -> Any:
        program = dataclasses.replace(TRUNCATED, importance_max=maximum)
        weights = jnp.asarray(drawn, jnp.float32)

        def mean(params: Params) -> Any:
            def of(response: jax.Array) -> Any:
                alone = rows._replace(mask=rows.mask & (rows.sequences == response))
                given = (program, params, alone, jnp.float32(1), advantages, reference)
                return losses.grpo_loss(*given)

            found = jax.vmap(of)(jnp.arange(7))
            loss, parts = jax.tree.map(lambda x: jnp.sum(weights * x), found)
            return loss, parts

        return jax.jit(jax.grad(mean, has_aux=True))(policy)

    wanted, of_policy = expected(p, 0.0)
    found, parts = expected(q, np.inf)
    close(found, wanted, 1e-4)
    np.testing.assert_allclose(parts["logprobs/importance_mean"], 1, rtol=1e-4)
    np.testing.assert_allclose(parts["kl/reference"], of_policy["kl/reference"], rtol=1e-3)
    assert parts["logprobs/importance_truncated"] == 0
    bounded, parts = expected(q, bound)
    close(bounded, expected(q * np.minimum(ratio, bound), 0.0)[0], 1e-4)
    np.testing.assert_allclose(
        [parts["logprobs/importance_mean"], parts["logprobs/importance_truncated"]],
        [np.sum(np.minimum(p, bound * q)), np.sum(q[ratio > bound])],
        rtol=1e-4,
    )
    biased = expected(q, 0.0)[0]
    off = [
        np.abs(np.asarray(a) - np.asarray(b)).max()
        for a, b in zip(jax.tree.leaves(biased), jax.tree.leaves(wanted), strict=True)
    ]
    assert max(off) > 0.01
    assert "logprobs/importance_mean" not in of_policy

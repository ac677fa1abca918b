"""What becomes of scores that are not finite, and of samples that are all the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core import forward, steps
from gad_jax.models.config import DecoderConfig
from gad_jax.types import PackedRows, Params
from tests.core.builders import (
    GAD,
    PROMPTS,
    SAMPLES,
    Outcome,
    close,
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

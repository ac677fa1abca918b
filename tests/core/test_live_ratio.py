"""Samples that were drawn before the last update: the ratio of the policy's loss is live."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core import losses
from gad_jax.core.program import Program
from tests.core.builders import (
    GAD,
    PROMPTS,
    SAMPLES,
    Texts,
    close,
    first,
    networks,
    put,
    rows,
    texts,
)
from tests.core.by_hand import alone, live_ratio_by_hand, logprobs_by_hand

PLAIN = dataclasses.replace(GAD, kl_coefficient=0.0)
LIVE = dataclasses.replace(PLAIN, behaviour="sampler")
RATIOS = (0.2, 0.7, 0.85, 1.0, 1.1, 1.15, 1.4, 2.5, 3.6)
"""In reach of each clip and outside of it, for either sign of an advantage."""


def sampled_by_others() -> tuple[Texts, np.ndarray, np.ndarray]:
    """Returns texts whose tokens have these ratios by turns, the sampler's log-probs as rows
    [B·N T], and advantages of both signs, one of them 0."""
    x = alone(texts(), "samples")
    logprobs = np.asarray(logprobs_by_hand(put(networks()[0]), x)[0])
    mask = np.asarray(x.mask)
    steps = np.zeros(mask.shape)
    steps[mask] = np.log(np.resize(RATIOS, mask.sum()))
    sampled = (logprobs - steps).astype(np.float32)
    advantages = np.random.default_rng(3).normal(size=PROMPTS * SAMPLES).astype(np.float32)
    advantages[4] = 0
    return with_logprobs(sampled, mask), sampled, advantages


def with_logprobs(sampled: np.ndarray, mask: np.ndarray) -> Texts:
    """Returns the texts with the sampler's log-probs in rows [B·N T]; a teacher's are not read."""
    found = texts()
    each = iter([row[m] for row, m in zip(sampled, mask, strict=True)])
    logprobs = [[group[0], *(next(each) for _ in group[1:])] for group in found.logprobs]
    return found._replace(logprobs=logprobs)


def gradient_of(program: Program) -> Any:
    """Returns the jitted gradient of the policy's loss, with the means of its parts."""

    def loss(params: Any, packed: Any, advantages: Any) -> Any:
        count = jnp.sum(packed.mask).astype(jnp.float32)
        return losses.grpo_loss(program, params, packed, count, advantages, None)

    return jax.jit(jax.grad(loss, has_aux=True))


def given() -> tuple[Any, ...]:
    found, _, advantages = sampled_by_others()
    return put(networks()[0]), first(rows(found, "samples")), jnp.asarray(advantages)


def test_tokens_inside_the_clips_weigh_by_the_ratio_and_those_outside_do_not_count() -> None:
    gradient, parts = gradient_of(LIVE)(*given())
    _, sampled, advantages = sampled_by_others()
    x = alone(texts(), "samples")
    wanted, means = live_ratio_by_hand(put(networks()[0]), x, advantages, sampled)
    close(gradient, wanted, 1e-4)  # the exponential of a difference of log-probs
    assert 0.2 < means["out"] < 0.8
    np.testing.assert_allclose(parts["logprobs/ratio_mean"], means["ratio"], rtol=1e-4)
    np.testing.assert_allclose(parts["logprobs/ratio_clipped"], means["out"], rtol=1e-5)
    assert "logprobs/importance_mean" not in parts


@pytest.mark.parametrize("maximum", [1.5, np.inf])
def test_with_a_bound_the_ratio_is_truncated_and_counts_once(maximum: float) -> None:
    program = dataclasses.replace(LIVE, importance_max=maximum)
    gradient, parts = gradient_of(program)(*given())
    _, sampled, advantages = sampled_by_others()
    x = alone(texts(), "samples")
    wanted, means = live_ratio_by_hand(put(networks()[0]), x, advantages, sampled, maximum)
    close(gradient, wanted, 1e-4)
    np.testing.assert_allclose(parts["logprobs/importance_mean"], means["each"], rtol=1e-4)
    np.testing.assert_allclose(parts["logprobs/importance_truncated"], means["out"], rtol=1e-5)
    assert (means["out"] > 0) == (maximum < 2)
    assert "logprobs/ratio_clipped" not in parts


def test_weights_are_those_of_a_sampler_that_rounds() -> None:
    """Whoever drew the samples, a bound makes the same program."""
    texts_of = [
        gradient_of(dataclasses.replace(each, importance_max=2.0)).lower(*given()).as_text()
        for each in (PLAIN, LIVE)
    ]
    assert texts_of[0] == texts_of[1]


def test_samples_of_the_same_weights_teach_as_before() -> None:
    """Where nothing lies between sampling and training, the ratio is 1 but for rounding."""
    params, _, advantages = given()
    x = alone(texts(), "samples")
    same = with_logprobs(np.asarray(logprobs_by_hand(params, x)[0]), np.asarray(x.mask))
    packed = first(rows(same, "samples"))
    live, parts = gradient_of(LIVE)(params, packed, advantages)
    plain, _ = gradient_of(PLAIN)(params, packed, advantages)
    close(live, plain, 1e-4)
    assert parts["logprobs/ratio_clipped"] == 0
    np.testing.assert_allclose(parts["logprobs/ratio_mean"], 1, rtol=1e-5)

"""DPO's step against the equation written out by hand, and D's scores of samples."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core import preference
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import adapters, decoder
from gad_jax.models.config import Lora
from gad_jax.types import Frozen, Params
from tests.core.builders import (
    GAD,
    GENERATOR,
    MESH_GAD,
    PROMPTS,
    SAMPLES,
    Outcome,
    close,
    host,
    identical,
    networks,
    put,
    rows,
    start,
    texts,
)
from tests.core.by_hand import all_scores_by_hand, alone, logprobs_by_hand

DPO = dataclasses.replace(GAD, train_discriminator=False, dpo_beta=0.05, dpo_sft_coefficient=0.3)


@functools.cache
def stepped(micro_batches: int = 1) -> Outcome:
    batch = rows(texts(), "pairs", micro_batches)
    return host(preference.dpo_step(DPO, start(DPO), batch))


@functools.cache
def by_hand() -> tuple[float, dict[str, float], Params]:
    """Returns loss, metrics and gradient with every response in a row of its own."""
    generator, reference, _ = (put(network) for network in networks())
    teacher, samples = alone(texts(), "teacher"), alone(texts(), "samples")

    def sums(params: Params, x: object) -> jax.Array:
        logprobs, _ = logprobs_by_hand(params, x, 1.0)
        return jnp.sum(logprobs.reshape(x.mask.shape) * x.mask, axis=1)

    @jax.jit
    def value_and_grad(params: Params, reference: Params) -> tuple:
        def loss(params: Params) -> tuple:
            chosen, rejected = sums(params, teacher), sums(params, samples)
            ratios = chosen - sums(reference, teacher), rejected - sums(reference, samples)
            margins = 0.05 * (ratios[0] - ratios[1])
            tokens = jnp.sum(teacher.mask) / SAMPLES  # each teacher's response is there N times
            imitation = -jnp.sum(chosen) / SAMPLES / tokens
            loss = jnp.mean(jnp.log1p(jnp.exp(-margins))) + 0.3 * imitation
            return loss, {
                "dpo/accuracy": jnp.mean(margins > 0),
                "dpo/margin": jnp.mean(margins),
                "dpo/chosen_reward": 0.05 * jnp.mean(ratios[0]),
                "dpo/rejected_reward": 0.05 * jnp.mean(ratios[1]),
                "dpo/chosen_logprobs": -imitation,
                "dpo/rejected_logprobs": jnp.sum(rejected) / jnp.sum(samples.mask),
            }

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, metrics), gradient = jax.device_get(value_and_grad(generator, reference))
    return loss, metrics, gradient


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_loss_metrics_and_gradient_are_those_of_the_equation(micro_batches: int) -> None:
    loss, metrics, gradient = by_hand()
    found = stepped(micro_batches)
    np.testing.assert_allclose(found.metrics["generator/loss"], loss, rtol=1e-5)
    for name, wanted in metrics.items():
        np.testing.assert_allclose(found.metrics[name], wanted, rtol=1e-4, err_msg=name)
    assert 0 < found.metrics["dpo/accuracy"] < 1  # so that pairs of both kinds were tested
    close(found.state.generator_optimizer[0], gradient, 2e-5)


def test_the_step_leaves_all_but_the_generator_alone() -> None:
    _, reference, discriminator = networks()
    state = stepped().state
    identical(state.reference, reference)
    identical(state.discriminator, discriminator)
    assert state.discriminator_optimizer is None
    assert state.step == 1


def test_at_the_stages_start_the_loss_is_ln_2() -> None:
    found = host(preference.dpo_step(DPO, start(DPO, reference="same"), rows(texts())))
    imitation = -0.3 * found.metrics["dpo/chosen_logprobs"]
    # Log-probabilities of ten are rounded in the sixth digit after the point.
    wanted = math.log(2) + imitation
    np.testing.assert_allclose(found.metrics["generator/loss"], wanted, atol=1e-5)
    np.testing.assert_allclose(found.metrics["dpo/margin"], 0, atol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    state = start(DPO)
    reference = dict(state.reference)
    reference["embedding"] = reference["embedding"] * jnp.nan
    found = host(preference.dpo_step(DPO, state._replace(reference=reference), rows(texts())))
    assert found.metrics["skips/total"] == 1
    identical(found.state.generator, networks()[0])


def test_a_mesh_changes_nothing() -> None:
    program = dataclasses.replace(
        MESH_GAD, train_discriminator=False, dpo_beta=0.05, dpo_sft_coefficient=0.3
    )
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        batch = rows(texts(), "pairs", 2, mesh)
        found = host(preference.dpo_step(program, start(program, mesh), batch))
    loss, metrics, gradient = by_hand()
    np.testing.assert_allclose(found.metrics["generator/loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["dpo/margin"], metrics["dpo/margin"], rtol=1e-4)
    close(found.state.generator_optimizer[0], gradient, 2e-5)


def test_adapters_on_a_frozen_base_compare_with_their_start() -> None:
    config = dataclasses.replace(GENERATOR, lora=Lora(2, 4.0, ("query", "up")))
    program = dataclasses.replace(DPO, generator=config, dpo_sft_coefficient=0.0)
    base, _ = adapters.split(config, decoder.init(config, jax.random.key(0)))
    trained = jax.tree.map(jnp.asarray, adapters.init(config, jax.random.key(1)))
    state = start(program)._replace(
        generator=trained,
        generator_optimizer=jax.jit(program.generator_optimizer.init)(trained),
        reference=jax.tree.map(jnp.copy, trained),
    )
    found = host(preference.dpo_step(program, state, rows(texts()), Frozen(base)))
    np.testing.assert_allclose(found.metrics["generator/loss"], math.log(2), atol=1e-6)
    assert found.metrics["generator/gradient_norm"] > 0


def test_scores_come_in_the_order_of_the_prompts() -> None:
    found = preference.score_responses(DPO, put(networks()[2]), rows(texts(), "samples", 2))
    assert found.shape == (PROMPTS, SAMPLES)
    np.testing.assert_allclose(found, all_scores_by_hand()[1], atol=1e-5)

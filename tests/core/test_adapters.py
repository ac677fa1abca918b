"""The compiled steps on networks with adapters: gradients, what stays frozen, one base for both."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core import steps
from gad_jax.core.program import Program
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import adapters, decoder
from gad_jax.models.config import DecoderConfig, Lora
from gad_jax.types import Frozen, Params, TrainState
from tests.core import builders
from tests.core.builders import MESH_GAD, close, host, identical, rows, texts

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


def with_lora(config: DecoderConfig, rank: int) -> DecoderConfig:
    return dataclasses.replace(config, lora=Lora(rank, 4.0, TARGETS))


LORA = dataclasses.replace(
    MESH_GAD,
    generator=with_lora(MESH_GAD.generator, 4),
    discriminator=with_lora(MESH_GAD.discriminator, 2),
)
MERGED = dataclasses.replace(
    MESH_GAD, generator=LORA.generator.merged, discriminator=LORA.discriminator.merged
)
BASE, SCORE = builders.networks()[0], builders.networks()[2]["score"]


def trained(config: DecoderConfig, seed: int) -> Params:
    """Returns adapters that have learnt something, and a score head."""
    random = np.random.default_rng(seed)
    shapes = adapters.abstract(config)[1]
    found = jax.tree.map(lambda x: 0.3 * random.standard_normal(x.shape).astype("f"), shapes)
    return found | ({"score": SCORE} if "score" in shapes else {})


def parts(program: Program) -> tuple[Params, Params, Params]:
    """Returns generator, reference and discriminator as the program's state holds them."""
    made = trained(LORA.generator, 1), trained(LORA.generator, 2), trained(LORA.discriminator, 3)
    if program is LORA:
        return made
    base = builders.put(BASE)
    joined = [adapters.join(base, builders.put(each)) for each in made[:2]]
    scorer = adapters.join(adapters.without_head(base), builders.put(made[2]))
    merged = [adapters.merge(LORA.generator, each) for each in joined]
    return jax.device_get((*merged, adapters.merge(LORA.discriminator, scorer)))


def begin(program: Program, mesh: Any = None) -> tuple[TrainState, Frozen]:
    with pytest.MonkeyPatch.context() as patch:
        made = parts(program)
        patch.setattr(builders, "networks", lambda: made)
        state = builders.start(program, mesh)
    return state, Frozen(builders.put(BASE, mesh)) if program is LORA else Frozen()


def batch(mesh: Any = None) -> list[Any]:
    return [rows(texts(), which, 2, mesh) for which in ("pairs", "samples")]


@functools.cache
def gad_step(program: Program = LORA) -> builders.Outcome:
    state, frozen = begin(program)
    return host(steps.gad_step(program, state, *batch(), frozen))


def test_gradients_are_those_of_the_merged_weights_by_the_chain_rule() -> None:
    """dA = s dW Bᵀ and dB = s Aᵀ dW, with dW from a step of full training on merged weights."""
    ours, whole = gad_step(), gad_step(MERGED)
    both = zip(builders.gradients(ours), builders.gradients(whole), strict=True)
    configs = LORA.generator, LORA.discriminator
    for (found, full), config, start in zip(both, configs, parts(LORA)[::2], strict=True):
        assert config.lora is not None
        for name, part in start["layers"].items():
            slope = full["layers"][name]["kernel"]
            wanted = {
                "lora_a": config.lora.scale * slope @ part["lora_b"].swapaxes(1, 2),
                "lora_b": config.lora.scale * part["lora_a"].swapaxes(1, 2) @ slope,
            }
            close(found["layers"][name], wanted, 2e-5)
        if "score" in full:
            close(found["score"], full["score"], 2e-5)
    compared = [name for name in whole.metrics if "broken" not in name and "norm" not in name]
    for name in compared:
        np.testing.assert_allclose(
            ours.metrics[name], whole.metrics[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_a_step_of_one_network_leaves_the_other_as_it_was() -> None:
    tokens = jnp.arange(12).reshape(1, 12)
    segments = rows(texts(), "samples").segments
    segments = jax.tree.map(lambda z: jnp.ones_like(tokens), segments)

    def logits(generator: Params) -> np.ndarray:
        whole = builders.put(adapters.join(BASE, generator))
        return np.asarray(decoder.logits(LORA.generator, whole, tokens, tokens, segments))

    before = begin(LORA)[0]
    policy, scorer = logits(before.generator), jax.device_get(before.discriminator)
    state, frozen = begin(LORA)
    after, _ = steps.discriminator_step(LORA, state, batch()[0], frozen)
    np.testing.assert_array_equal(logits(after.generator), policy)
    assert builders.moved(scorer, after.discriminator)
    state, _ = begin(LORA)
    after, _ = steps.seqkd_step(LORA, state, rows(texts(), "teacher"), frozen)
    identical(jax.device_get(after.discriminator), scorer)
    assert np.abs(logits(after.generator) - policy).max() > 1e-4
    identical(jax.device_get(frozen.generator), BASE)  # not donated, not changed


def test_eight_devices_learn_what_one_does() -> None:
    shape = (2, 2, 2)
    mesh = make_mesh(*shape, jax.devices()[: math.prod(shape)])
    with jax.set_mesh(mesh):
        state, frozen = begin(LORA, mesh)
        found = steps.gad_step(LORA, state, *batch(mesh), frozen)
        state, metrics = devices.fetch((found[0]._replace(key=None), found[1]))
    kept = state.generator_optimizer[0], state.discriminator_optimizer[0]
    close(kept, builders.gradients(gad_step()), 1e-4)  # as of full training
    for name in ("generator/loss", "discriminator/loss", "kl/reference"):
        np.testing.assert_allclose(metrics[name], gad_step().metrics[name], rtol=1e-4, atol=1e-6)


def test_one_base_is_among_the_arguments_of_the_compiled_step() -> None:
    state, frozen = begin(LORA)
    packed = batch()
    compiled = steps.gad_step.trace(LORA, state, *packed, frozen).lower().compile()
    needed = [x.nbytes for x in jax.tree.leaves((state._replace(key=None), packed, frozen))]
    base = sum(x.nbytes for x in jax.tree.leaves(frozen))
    arguments = compiled.memory_analysis().argument_size_in_bytes
    assert sum(needed) - base / 2 < arguments <= sum(needed)  # what no one reads is left out
    assert base > 2 * sum(x.nbytes for x in jax.tree.leaves(state.generator))

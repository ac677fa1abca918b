"""The spans of a run: which steps a stage has, who trains in them, what is evaluated after them."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from gad_jax.core.optimizer import Schedule
from gad_jax.data.pipeline import Prepared
from gad_jax.distributed.mesh import make_mesh
from gad_jax.training import architectures, reading, stages, state
from gad_jax.types import Params
from tests.core.builders import GAD, identical, start
from tests.training.runs import settings

BUNDLED = ("--data.train=bundled", "--data.heldout=")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    prepared = reading.read(settings(tmp_path_factory.mktemp("data"), *BUNDLED)).rows
    assert isinstance(prepared, Prepared)
    return prepared


def spans(data: Prepared, *flags: str) -> tuple[stages.Span, ...]:
    config = settings("unused", *BUNDLED, *flags)
    return stages.spans(config, data, architectures.configs(config))


def test_stages_follow_each_other(data: Prepared) -> None:
    warmup, gad = spans(data, "--warmup.steps=3", "--gad.steps=2")
    assert [(s.stage, s.start, s.end) for s in (warmup, gad)] == [("warmup", 0, 3), ("gad", 3, 5)]
    assert not np.array_equal(warmup.batches[0].indices, gad.batches[0].indices)  # other shuffles


def test_epochs_are_rounded_up_to_steps(data: Prepared) -> None:
    flags = ("--stage=seqkd", "--seqkd.steps=0", "--seqkd.epochs=0.5", "--batch.prompts=100")
    [span] = spans(data, *flags)
    assert span.end == np.ceil(0.5 * (len(data) // 100))


def test_rates_fall_over_the_steps_of_their_stage(data: Prepared) -> None:
    flags = ("--warmup.steps=3", "--gad.steps=2", "--gad.schedule=cosine")
    warmup, gad = spans(data, *flags)
    assert warmup.program.schedule is None
    assert gad.program.schedule == Schedule(3, 5, "cosine")


def test_who_trains_and_who_samples(data: Prepared) -> None:
    warmup, gad = spans(data, "--warmup.steps=3", "--warmup.discriminator_only_steps=2")
    assert [warmup.is_discriminator_only(step) for step in range(3)] == [True, True, False]
    assert warmup.samples_student
    flags = ("--warmup.train_discriminator=false", "--gad.train_discriminator=false")
    warmup, gad = spans(
        data, *flags, "--discriminator.path=random-tiny", "--warmup.discriminator_only_steps=0"
    )
    assert not warmup.samples_student
    assert gad.samples_student  # for its rewards
    assert not gad.is_discriminator_only(gad.start)


def test_an_evaluation_is_due_at_the_end_and_every_so_many_steps(data: Prepared) -> None:
    [span] = spans(data, "--stage=gad", "--gad.steps=5")
    labels = [span.evaluation_due(step, 2) for step in range(1, 6)]
    assert labels == ["", "step 2", "", "step 4", "after gad"]
    assert span.evaluation_due(4, 0) == ""


def test_a_stage_begins_with_fresh_moments_or_with_those_of_the_stage_before() -> None:
    used = start()
    used = used._replace(
        generator_optimizer=jax.tree.map(lambda x: x + 1, used.generator_optimizer),
        discriminator_optimizer=None,  # which the stage before had frozen
    )
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    keeping = dataclasses.replace(GAD, keep_moments=True)
    wanted = jax.device_get(used.generator_optimizer)
    kept = state.begin_stage(used, keeping, mesh, dict)
    identical(kept.generator_optimizer, wanted)

    def init(params: Params) -> Any:
        """The new moments, which come when the old ones are gone."""
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(used.generator_optimizer))
        return GAD.generator_optimizer.init(params)

    watching = GAD.generator_optimizer._replace(init=init)
    watched = dataclasses.replace(GAD, generator_optimizer=watching)
    fresh = state.begin_stage(used, watched, mesh, dict)
    for moments in (fresh.generator_optimizer, kept.discriminator_optimizer):
        identical(moments, jax.tree.map(np.zeros_like, moments))

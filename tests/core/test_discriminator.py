"""The discriminator's part of a step: older answers in its batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gad_jax.core import packing, steps
from gad_jax.types import Params, Replay
from tests.core.builders import (
    GAD,
    PROMPTS,
    SAMPLES,
    Outcome,
    Texts,
    close,
    gradients,
    host,
    networks,
    put,
    rows,
    start,
    stepped,
    texts,
)
from tests.core.by_hand import all_scores_by_hand, alone, scores_by_hand

OLD = np.zeros((PROMPTS, SAMPLES), bool)
OLD[::2, -1] = True
"""Every second prompt has one older answer, in the last place."""


def mixed() -> Texts:
    """Returns the texts with older answers, of the same lengths, in those places."""
    fresh, older = texts(), texts(seed=5)
    groups = [
        [*group[:-1], other[-1] if old[-1] else group[-1]]
        for group, other, old in zip(fresh.responses, older.responses, OLD, strict=True)
    ]
    return fresh._replace(responses=groups)


@functools.cache
def replayed() -> Outcome:
    """Returns a GAD step whose pairs hold older answers, in two micro-batches.

    The displaced samples are in two of their own, whose prompts are others.
    """
    last = [group[-1:] for group in texts().responses]
    displaced = packing.pack(texts().prompts, last, row_tokens=32, micro_batches=2, shards=4)
    pairs, samples = (rows(x, which, 2) for x, which in ((mixed(), "pairs"), (texts(), "samples")))
    assert np.asarray(displaced.groups).tolist() != np.asarray(pairs.groups).tolist()
    replay = Replay(jnp.asarray(OLD), jax.tree.map(jnp.array, displaced))
    return host(steps.gad_step(GAD, start(), pairs, samples, replay=replay))


def test_the_generator_is_paid_for_fresh_samples_alone() -> None:
    """Its update, rewards and advantages are those of a step without replay."""
    found, wanted = replayed(), stepped("gad")
    # The displaced samples are scored in other rows, and an advantage divides by a spread.
    close(gradients(found)[0], gradients(wanted)[0], 2e-5)
    for name in ("reward/mean", "reward/std", "reward/minus_teacher", "advantage/norm"):
        np.testing.assert_allclose(found.metrics[name], wanted.metrics[name], rtol=1e-4, atol=1e-5)


def test_the_discriminator_learns_from_older_answers_as_from_any() -> None:
    teacher, samples = alone(mixed(), "teacher"), alone(mixed(), "samples")

    @jax.jit
    def by_hand(params: Params) -> tuple[jax.Array, Params]:
        def loss(params: Params) -> jax.Array:
            margin = scores_by_hand(params, teacher) - scores_by_hand(params, samples)
            return -jnp.mean(jax.nn.log_sigmoid(margin))

        return jax.value_and_grad(loss)(params)

    loss, gradient = by_hand(put(networks()[2]))
    close(gradients(replayed())[1], gradient, 1e-5)
    np.testing.assert_allclose(replayed().metrics["discriminator/loss"], loss, rtol=1e-5)


def test_accuracy_and_margin_are_of_fresh_samples_and_older_ones_have_their_own() -> None:
    teacher, fresh = all_scores_by_hand()
    older = np.asarray(scores_by_hand(put(networks()[2]), alone(mixed(), "samples")))
    older = older.reshape(PROMPTS, SAMPLES)
    metrics = replayed().metrics
    for name, wanted in (
        ("accuracy", (teacher > fresh)[~OLD].mean()),
        ("accuracy_replayed", (teacher > older)[OLD].mean()),
        ("margin", (teacher - fresh)[~OLD].mean()),
        ("student_score", fresh[~OLD].mean()),
        ("teacher_score", teacher.mean()),
    ):
        np.testing.assert_allclose(metrics[f"discriminator/{name}"], wanted, atol=1e-5)


def test_an_update_takes_the_same_flops_with_older_answers() -> None:
    """By XLA's count. The pass that scores the displaced samples is no part of D's update."""

    def flops(*more: Any) -> float:
        arguments = (GAD, start(), rows(mixed()), steps.NOTHING, *more)
        analysis: Any = steps.discriminator_step.lower(*arguments).compile().cost_analysis()
        return analysis["flops"]

    without, with_replay = flops(), flops(Replay(jnp.asarray(OLD)))
    assert abs(with_replay / without - 1) < 0.01

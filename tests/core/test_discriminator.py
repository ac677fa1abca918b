"""The discriminator's part of a step: older answers, and what keeps it from winning."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gad_jax.core import objectives, packing, steps
from gad_jax.models import decoder
from gad_jax.types import Params, Replay, TrainState
from tests.core.builders import (
    DISCRIMINATOR,
    GAD,
    OPTIMIZER,
    PROMPTS,
    SAMPLES,
    Outcome,
    Texts,
    close,
    gradients,
    host,
    identical,
    moved,
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


HEALTHY = dataclasses.replace(
    GAD, accuracy_gate=0.01, label_smoothing=0.1, length_debias=True, drop_flat_groups=True
)


def test_a_gated_discriminator_stays_and_the_generator_moves() -> None:
    """Neither its weights nor its moments move; rewards are its scores, without the length term."""
    found, wanted = stepped("gad", HEALTHY), stepped("gad")
    assert found.metrics["discriminator/accuracy"] > HEALTHY.accuracy_gate
    assert found.metrics["discriminator/gated"] == 1
    assert found.metrics["skips/total"] == 0
    before = host((start(), {})).state
    identical(found.state.discriminator, before.discriminator)
    identical(found.state.discriminator_optimizer, before.discriminator_optimizer)
    assert moved(before.generator, found.state.generator)
    # No group is flat here, so the generator's update is that of the paper's discriminator.
    close(gradients(found)[0], gradients(wanted)[0], 2e-5)
    np.testing.assert_allclose(
        found.metrics["reward/mean"], wanted.metrics["reward/mean"], rtol=1e-5
    )


def test_smoothed_labels_and_the_length_term_by_hand() -> None:
    """In a step that trains D alone, which no gate keeps from it."""
    teacher, samples = alone(texts(), "teacher"), alone(texts(), "samples")
    longer = (teacher.last - samples.last).astype(jnp.float32)
    slope = objectives.length_slope(longer, 0.1)
    assert abs(slope) > 1e-3

    @jax.jit
    def by_hand(params: Params) -> tuple[jax.Array, Params]:
        def loss(params: Params) -> jax.Array:
            margin = scores_by_hand(params, teacher) - scores_by_hand(params, samples)
            margin += slope * longer
            right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
            return -jnp.mean(0.9 * right + 0.1 * wrong)

        return jax.value_and_grad(loss)(params)

    loss, gradient = by_hand(put(networks()[2]))
    found = stepped("discriminator", HEALTHY)
    assert "discriminator/gated" not in found.metrics
    close(gradients(found)[1], gradient, 1e-5)
    np.testing.assert_allclose(found.metrics["discriminator/loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["discriminator/length_slope"], slope, rtol=1e-4)
    # Accuracy is that of the scores alone, as in any step.
    wanted = stepped("discriminator").metrics["discriminator/accuracy"]
    assert found.metrics["discriminator/accuracy"] == wanted


def test_flat_groups_leave_the_loss_and_its_count() -> None:
    packed = rows(texts(), "samples")
    spread = jnp.asarray([0.0, 1.0, 1e-7, 2.0, 1.0, 0.5, 0.1, 0.0])
    kept = steps._without_flat_groups(packed, spread)
    group = np.asarray(packed.sequences) // SAMPLES
    wanted = np.asarray(packed.mask) & np.isin(group, [1, 3, 4, 5, 6])
    np.testing.assert_array_equal(kept.mask, wanted)
    lengths = [sum(len(r) for r in responses[1:]) for responses in texts().responses]
    assert steps._response_tokens(kept) == sum(lengths[n] for n in (1, 3, 4, 5, 6))
    identical(kept._replace(mask=packed.mask), packed)
    # Where all are flat, the loss is zero, not 0 / 0.
    nothing = steps._without_flat_groups(packed, jnp.zeros(PROMPTS))
    assert steps._response_tokens(nothing) == 1
    assert not np.asarray(nothing.mask).any()


def test_what_is_measured_per_token_is_nan_where_all_groups_are_flat(monkeypatch: Any) -> None:
    """A monitor leaves NaN out; an entropy of 0 would raise its alarm."""
    one = jnp.ones(())
    monkeypatch.setattr(steps, "accumulate", lambda *_: (one, {}, {"entropy": jnp.ones(2)}))
    packed, advantages = rows(texts(), "samples"), jnp.zeros((PROMPTS, SAMPLES))
    nothing = packed._replace(mask=jnp.zeros_like(packed.mask))
    for given, wanted in ((packed, 2), (nothing, np.nan)):
        found = steps._reinforce_generator(HEALTHY, start(), given, advantages, steps.NOTHING)
        assert found.loss == 1
        np.testing.assert_array_equal(found.metrics["entropy"], wanted)


HEADS = dataclasses.replace(
    GAD, discriminator=dataclasses.replace(DISCRIMINATOR, score_heads=2), pessimism=0.5
)


def second_head() -> Params:
    """Returns the discriminator with another head."""
    head = {"kernel": np.roll(networks()[2]["score"]["kernel"], 3), "bias": np.float32([0.3])}
    return networks()[2] | {"score": head}


def with_two_heads() -> TrainState:
    one, other = networks()[2]["score"], second_head()["score"]
    heads = {name: np.concatenate([one[name], other[name]], axis=-1) for name in one}
    params = put(networks()[2] | {"score": heads})
    return start()._replace(discriminator=params, discriminator_optimizer=OPTIMIZER.init(params))


def test_each_head_has_its_loss_and_the_reward_is_less_where_they_differ() -> None:
    teacher, samples = alone(texts(), "teacher"), alone(texts(), "samples")

    @jax.jit
    def by_hand(trunk: Params) -> tuple[tuple[jax.Array, Any], Params]:
        def loss(trunk: Params) -> Any:
            scores = [
                [scores_by_hand(trunk | {"score": params["score"]}, x) for x in (teacher, samples)]
                for params in (networks()[2], second_head())
            ]
            losses = [-jnp.mean(jax.nn.log_sigmoid(t - s)) for t, s in scores]
            return sum(losses) / 2, scores

        return jax.value_and_grad(loss, has_aux=True)(trunk)

    trunk = {name: part for name, part in networks()[2].items() if name != "score"}
    (loss, scores), gradient = by_hand(put(trunk))
    batch = rows(texts(), "pairs"), rows(texts(), "samples")
    found = host(steps.gad_step(HEADS, with_two_heads(), *batch))
    ours = {name: part for name, part in gradients(found)[1].items() if name != "score"}
    close(ours, gradient, 1e-5)
    np.testing.assert_allclose(found.metrics["discriminator/loss"], loss, rtol=1e-5)
    (t1, s1), (t2, s2) = (map(np.asarray, each) for each in scores)
    spread = np.abs((s1 - t1) - (s2 - t2)) / np.sqrt(2)  # the standard deviation of two numbers
    np.testing.assert_allclose(found.metrics["discriminator/head_spread"], spread.mean(), rtol=1e-4)
    rewards = (s1 + s2) / 2 - 0.5 * spread
    np.testing.assert_allclose(found.metrics["reward/mean"], rewards.mean(), rtol=1e-4)
    accuracy = (t1 + t2 > s1 + s2).mean()
    np.testing.assert_allclose(found.metrics["discriminator/accuracy"], accuracy, rtol=1e-6)
    # An export has one head, whose scores are the mean.
    config, params = decoder.with_mean_head(HEADS.discriminator, with_two_heads().discriminator)
    assert config == DISCRIMINATOR
    mean = np.asarray(scores_by_hand(params, samples))
    np.testing.assert_allclose(mean, (s1 + s2) / 2, rtol=1e-4, atol=1e-5)

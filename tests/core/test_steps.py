"""The compiled steps against losses written out by hand, and what must leave them unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core import packing, steps
from gad_jax.distributed import mesh
from gad_jax.types import PackedRows, Params
from tests.core.builders import (
    FROZEN,
    GAD,
    UNUSED,
    close,
    gradients,
    history,
    host,
    identical,
    mesh_history,
    moved,
    networks,
    put,
    rows,
    start,
    stepped,
    texts,
)
from tests.core.by_hand import (
    advantages_by_hand,
    all_scores_by_hand,
    alone,
    generator_by_hand,
    logprobs_by_hand,
    scores_by_hand,
)

# The gradients


def test_the_generators_gradient_is_reinforce() -> None:
    # The reference is the generator itself: the KL and its gradient are zero.
    found = history().outcomes[0]
    # An advantage divides by a spread of scores: rounding grows by the inverse.
    close(gradients(found)[0], generator_by_hand(), 2e-5)
    # ρ = 1, so the loss is the mean of -A, while REINFORCE's would be that of -A log p.
    lengths = np.asarray([[len(r) for r in group[1:]] for group in texts().responses])
    wanted = -np.sum(advantages_by_hand() * lengths) / lengths.sum()
    np.testing.assert_allclose(found.metrics["generator/policy_loss"], wanted, atol=1e-5)


def test_the_kl_term_and_its_gradient() -> None:
    found = stepped("gad")
    close(gradients(found)[0], generator_by_hand(kl=0.1), 2e-5)
    metrics = found.metrics
    assert 0 < metrics["kl/reference"] < 10
    wanted = metrics["generator/policy_loss"] + 0.1 * metrics["kl/reference"]
    np.testing.assert_allclose(metrics["generator/loss"], wanted, rtol=1e-6)


def test_the_entropy_bonus_and_its_gradient() -> None:
    found = stepped("gad", FROZEN)
    close(found.state.generator_optimizer[0], generator_by_hand(bonus=0.1), 2e-5)
    metrics = found.metrics
    assert metrics["entropy"] > 1
    wanted = metrics["generator/policy_loss"] - 0.1 * metrics["entropy"]
    np.testing.assert_allclose(metrics["generator/loss"], wanted, rtol=1e-6)


def test_scoring_the_teacher_once_gives_the_gradient_of_scoring_it_for_each_sample() -> None:
    teacher, samples = alone(texts(), "teacher"), alone(texts(), "samples")

    @jax.jit
    def naive(params: Params) -> tuple[jax.Array, Params]:
        def loss(params: Params) -> jax.Array:
            margin = scores_by_hand(params, teacher) - scores_by_hand(params, samples)
            return -jnp.mean(jax.nn.log_sigmoid(margin))

        return jax.value_and_grad(loss)(params)

    loss, gradient = naive(put(networks()[2]))
    found = stepped("discriminator")
    close(gradients(found)[1], gradient, 1e-5)
    np.testing.assert_allclose(found.metrics["discriminator/loss"], loss, rtol=1e-5)


def test_discriminator_metrics_are_of_fresh_scores() -> None:
    teacher, samples = all_scores_by_hand()
    for kind in ("gad", "discriminator"):
        metrics = stepped(kind).metrics
        for name, wanted in (
            ("accuracy", (teacher > samples).mean()),
            ("margin", (teacher - samples).mean()),
            ("teacher_score", teacher.mean()),
            ("student_score", samples.mean()),
        ):
            np.testing.assert_allclose(metrics[f"discriminator/{name}"], wanted, atol=1e-5)


def test_the_cross_entropy_discriminator() -> None:
    teacher, samples = all_scores_by_hand()
    wanted = np.mean(np.log1p(np.exp(-teacher)) + np.log1p(np.exp(samples)))
    found = stepped("gad", FROZEN).metrics["discriminator/loss"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_rewards_are_the_scores_of_the_discriminator_before_its_update() -> None:
    _, rewards = all_scores_by_hand()
    found = stepped("gad")
    assert moved(networks()[2], found.state.discriminator)
    np.testing.assert_allclose(found.metrics["reward/mean"], rewards.mean(), atol=1e-5)
    teacher = all_scores_by_hand()[0]
    wanted = (rewards - teacher).mean()
    np.testing.assert_allclose(found.metrics["reward/minus_teacher"], wanted, atol=1e-5)
    spread = rewards.std(axis=1, ddof=1).mean()
    np.testing.assert_allclose(found.metrics["reward/std"], spread, rtol=1e-4)
    norm = np.sqrt(np.mean(advantages_by_hand() ** 2))
    np.testing.assert_allclose(found.metrics["advantage/norm"], norm, rtol=1e-4)
    assert found.metrics["advantage/dead_groups"] == 0


def test_a_group_of_equal_rewards_is_counted_as_dead() -> None:
    # The rounded mean of eight times 12.3 is not 12.3.
    rewards = jnp.asarray([[12.3] * 8, [12.3] * 7 + [12.4]])
    found = steps._reward_metrics(rewards, jnp.zeros_like(rewards))
    assert found["advantage/dead_groups"] == 0.5
    np.testing.assert_allclose(found["reward/std"], 0.1 / np.sqrt(8) / 2, rtol=1e-4)


def test_the_kl_is_not_mixed_into_rewards() -> None:
    with_kl, without = stepped("gad").metrics, stepped("gad", FROZEN).metrics
    for name in ("reward/mean", "reward/std", "advantage/norm", "generator/policy_loss"):
        np.testing.assert_allclose(with_kl[name], without[name], rtol=1e-5, atol=1e-6)


def test_the_gap_to_the_sampler_is_measured() -> None:
    x = alone(texts(), "samples")
    found, _ = logprobs_by_hand(put(networks()[0]), x)
    sampled = np.concatenate([r for group in texts().logprobs for r in group[1:]])
    wanted = np.mean(np.abs(np.asarray(found)[np.asarray(x.mask)] - sampled))
    np.testing.assert_allclose(stepped("gad").metrics["logprobs/gap"], wanted, rtol=1e-5)


def test_imitation_is_the_token_mean_cross_entropy_at_temperature_one() -> None:
    x = alone(texts(), "teacher")
    logprobs, entropy = logprobs_by_hand(put(networks()[0]), x, 1.0)
    # each response stands there SAMPLES times: the mean is the same
    metrics = stepped("seqkd").metrics
    wanted = -np.sum(logprobs * x.mask) / np.sum(x.mask)
    np.testing.assert_allclose(metrics["generator/loss"], wanted, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["entropy"], np.sum(entropy * x.mask) / np.sum(x.mask), rtol=1e-5
    )


def test_the_warmup_is_both_updates_at_once() -> None:
    both = stepped("warmup")
    discriminator, generator = stepped("discriminator"), stepped("seqkd")
    close(gradients(both)[0], gradients(generator)[0])
    close(gradients(both)[1], gradients(discriminator)[1])
    close(both.state.generator, generator.state.generator)
    close(both.state.discriminator, discriminator.state.discriminator)
    identical(generator.state.discriminator, networks()[2])
    identical(discriminator.state.generator, networks()[0])
    names = ("discriminator/loss", "generator/loss")
    apart = discriminator.metrics["discriminator/loss"], generator.metrics["generator/loss"]
    np.testing.assert_allclose([both.metrics[name] for name in names], apart, rtol=1e-6)


@pytest.mark.parametrize("kind", ["gad", "seqkd"])
def test_micro_batches_give_what_the_whole_gives(kind: str) -> None:
    halves = np.asarray(rows(texts(), "teacher", 2).groups)
    assert halves.tolist() != [[0, 1, 2, 3], [4, 5, 6, 7]]  # dealt by length, so the order counts
    whole, cut = stepped(kind), stepped(kind, micro_batches=2)
    # Other rows and other orders of sums; 1e-5 also covers advantages, which divide by a spread.
    close(gradients(cut), gradients(whole), 2e-5)
    close(cut.state.generator, whole.state.generator, 1e-5)
    close(cut.state.discriminator, whole.state.discriminator, 1e-5)
    assert cut.metrics.keys() == whole.metrics.keys()
    close(cut.metrics, whole.metrics, 1e-5)


# What must not matter


def test_padding_and_what_is_masked_have_no_influence() -> None:
    def spoil(packed: PackedRows) -> PackedRows:
        padding = packed.segments.own == 0
        return packed._replace(
            tokens=jnp.where(padding, UNUSED, packed.tokens),
            positions=jnp.where(padding, 7, packed.positions),
            targets=jnp.where(packed.mask, packed.targets, UNUSED),
            sequences=jnp.where(packed.mask, packed.sequences, 5),
            sampled_logprobs=jnp.where(packed.mask, packed.sampled_logprobs, -1e9),
        )

    batch = rows(texts(), "pairs"), rows(texts(), "samples")
    assert packing.padding_share(batch[1]) > 0
    spoiled = host(steps.gad_step(GAD, start(), *(spoil(packed) for packed in batch)))
    identical(spoiled, stepped("gad"))
    for gradient in (
        gradients(spoiled)[1]["embedding"][UNUSED],
        gradients(spoiled)[1]["embedding"][0],
    ):
        assert (gradient == 0).all()


def test_a_masked_token_has_no_gradient() -> None:
    def generator_gradient(teacher: PackedRows) -> Params:
        return gradients(host(steps.seqkd_step(GAD, start(), teacher)))[0]

    teacher = rows(texts(), "teacher")
    nothing = teacher._replace(mask=jnp.zeros_like(teacher.mask))
    identical(generator_gradient(nothing), jax.tree.map(np.zeros_like, networks()[0]))
    # Without one response, other ids inside of it change nothing; with it they do.
    (row, last), length = np.asarray(teacher.ends[0, 4, 0]), len(texts().responses[4][0])
    inside = (0, row, slice(last - length + 1, last + 1))
    other = teacher._replace(tokens=teacher.tokens.at[inside].set(UNUSED))
    left_out = teacher.mask & (teacher.sequences != 4)
    found, wanted = (generator_gradient(x._replace(mask=left_out)) for x in (other, teacher))
    identical(found, wanted)
    assert moved(generator_gradient(other), generator_gradient(teacher))


@pytest.mark.parametrize(
    ("shape", "micro_batches"), [((1, 4, 2), 1), ((2, 2, 2), 2), ((4, 1, 1), 1)]
)
def test_a_mesh_gives_what_one_device_gives(
    shape: tuple[int, int, int], micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "SHARDS_STAY", True)
    found, one = mesh_history(shape, micro_batches), history()
    # Sums over shards come in another order; an advantage divides by a spread of scores, and the
    # second step starts from what the first has left of the difference.
    for step in range(2):
        close(gradients(found.outcomes[step]), gradients(one.outcomes[step]), 1e-4)
        close(found.outcomes[step].metrics, one.outcomes[step].metrics, 1e-4)
        for name in ("generator", "discriminator"):
            close(*(getattr(x.outcomes[step].state, name) for x in (found, one)), 1e-4)


def test_one_program_serves_all_steps_of_a_shape() -> None:
    assert mesh_history((1, 4, 2), 1).compiled == [1, 0, 0]
    # on one device an earlier test may have compiled it
    assert history().compiled in ([1, 0, 0], [0, 0, 0])


def test_the_kl_is_zero_at_the_first_step_and_grows() -> None:
    at_start, *later = (outcome.metrics["kl/reference"] for outcome in history().outcomes)
    # the same function of the same weights, compiled apart
    assert abs(at_start) < 1e-6
    assert min(later) > 1e-5


def test_a_stage_without_kl_needs_no_reference() -> None:
    found = stepped("gad", FROZEN)
    assert found.state.reference is None
    assert "kl/reference" not in found.metrics


def test_the_reference_and_the_key_stay() -> None:
    state = stepped("gad").state
    identical(state.reference, networks()[1])
    identical(state.key, jax.random.key_data(jax.random.key(0)))


def test_a_frozen_discriminator_pays_rewards_and_stays_bit_identical() -> None:
    found = stepped("gad", FROZEN)
    identical(found.state.discriminator, networks()[2])
    assert found.state.discriminator_optimizer is None
    assert "discriminator/gradient_norm" not in found.metrics
    for name in ("reward/mean", "reward/std"):
        np.testing.assert_allclose(found.metrics[name], stepped("gad").metrics[name], rtol=1e-5)
    assert moved(networks()[0], found.state.generator)

"""The compiled steps: one optimizer update of the generator, the discriminator, or both.

`gad_step` is GRPO for G and Bradley-Terry for D in one program; `warmup_step` and `seqkd_step` are
made of the same parts, and `discriminator_step` trains D alone. Each takes the state and packed
rows, and returns the next state and metrics. Everything static is in a frozen `Program`.

A step is transactional (`updates.commit`): unless every loss, gradient norm, updated weight and
updated moment is finite, neither network nor its optimizer changes, and the step counts as skipped.
A non-finite score drops its pairs, which are all pairs of the prompt for a teacher's, and gives a
sample advantage 0. The step still counts where the gradients stay finite.

Of a network with adapters, the state holds what is trained, and `frozen` the base: an argument that
is not donated, and through which no gradient flows. Both networks may share one.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gad_jax.core import discriminator as scoring
from gad_jax.core import losses, objectives
from gad_jax.core.program import Program
from gad_jax.core.rewards import mixed
from gad_jax.core.updates import Update, accumulate, commit
from gad_jax.distributed import sharding
from gad_jax.models import adapters
from gad_jax.types import NOTHING, Frozen, Metrics, PackedRows, Params, Replay, TrainState

FLAT = 1e-6
"""A group whose rewards have a smaller standard deviation is flat: it teaches nothing."""


@jax.jit(static_argnames="program", donate_argnames="state")
def gad_step(
    program: Program,
    state: TrainState,
    pairs: PackedRows,
    samples: PackedRows,
    frozen: Frozen = NOTHING,
    replay: Replay | None = None,
    extra: Float[Array, "K B N"] | None = None,
) -> tuple[TrainState, Metrics]:
    """One iteration of GAD: both networks' updates, in one program.

    `pairs` holds the teacher's response (first) and the samples of every prompt, `samples` the
    samples alone. Rewards are the scores of the discriminator's own forward pass, so of D before
    its update. With `replay`, some places of `pairs` hold older answers, and the samples that they
    displace are scored by a pass of their own. `extra` has further terms of the reward, which
    `Program.reward` mixes in.
    """
    with jax.named_scope("discriminator"):
        discriminator, scores = scoring.update(program, state, pairs, frozen, replay)
        scores = scoring.paid(program, scoring.fresh(program, state, scores, frozen, replay))
    with jax.named_scope("advantages"):
        rewards = jax.lax.stop_gradient(scores[:, 1:])
        metrics = _over_teacher(scores)
        if extra is not None:
            metrics |= _discriminator_reward(rewards)
            rewards = mixed(program.reward, rewards, extra, program.advantage_epsilon)
        advantages, samples, found = _advantages(program, rewards, samples)
    with jax.named_scope("generator"):
        generator = _reinforce_generator(program, state, samples, advantages, frozen)
    return commit(program, state, generator, discriminator, metrics | found)


@jax.jit(static_argnames="program", donate_argnames="state")
def reward_step(
    program: Program,
    state: TrainState,
    samples: PackedRows,
    extra: Float[Array, "K B N"],
    frozen: Frozen = NOTHING,
) -> tuple[TrainState, Metrics]:
    """GRPO for G on rewards that need no discriminator: `gad_step` where its weight is 0."""
    with jax.named_scope("advantages"):
        rewards = mixed(program.reward, None, extra, program.advantage_epsilon)
        advantages, samples, found = _advantages(program, rewards, samples)
    with jax.named_scope("generator"):
        generator = _reinforce_generator(program, state, samples, advantages, frozen)
    return commit(program, state, generator, None, found)


@jax.jit(static_argnames="program", donate_argnames="state")
def warmup_step(
    program: Program,
    state: TrainState,
    pairs: PackedRows,
    teacher: PackedRows,
    frozen: Frozen = NOTHING,
    replay: Replay | None = None,
) -> tuple[TrainState, Metrics]:
    """Warm-up (section 2.3 of the paper): D on the student's own samples, G by cross-entropy."""
    with jax.named_scope("discriminator"):
        discriminator, _ = scoring.update(program, state, pairs, frozen, replay)
    with jax.named_scope("generator"):
        generator = _imitate_teacher(program, state, teacher, frozen)
    return commit(program, state, generator, discriminator, {})


@jax.jit(static_argnames="program", donate_argnames="state")
def discriminator_step(
    program: Program,
    state: TrainState,
    pairs: PackedRows,
    frozen: Frozen = NOTHING,
    replay: Replay | None = None,
) -> tuple[TrainState, Metrics]:
    """The discriminator's update alone; `pairs` holds teacher and samples of every prompt."""
    with jax.named_scope("discriminator"):
        discriminator, _ = scoring.update(program, state, pairs, frozen, replay, alone=True)
    return commit(program, state, None, discriminator, {})


@jax.jit(static_argnames="program", donate_argnames="state")
def seqkd_step(
    program: Program, state: TrainState, teacher: PackedRows, frozen: Frozen = NOTHING
) -> tuple[TrainState, Metrics]:
    """Cross-entropy of the generator on the teacher's responses (the SeqKD baseline).

    `teacher` holds one response per prompt.
    """
    with jax.named_scope("generator"):
        generator = _imitate_teacher(program, state, teacher, frozen)
    return commit(program, state, generator, None, {})


def _imitate_teacher(
    program: Program, state: TrainState, teacher: PackedRows, frozen: Frozen
) -> Update:
    count = _response_tokens(teacher)
    loss = losses.on_base(partial(losses.imitation_loss, program))
    given = program.generator, state.generator, teacher
    loss, gradients, parts = accumulate(loss, *given, frozen.generator, count)
    return Update(loss, gradients, jax.tree.map(jnp.sum, parts))


def _advantages(
    program: Program, rewards: Float[Array, "B N"], samples: PackedRows
) -> tuple[Float[Array, "B N"], PackedRows, Metrics]:
    """Returns the advantages, the samples that the generator learns from, and metrics of both."""
    if program.advantage_scale == "group":
        advantages = objectives.group_advantages(rewards, program.advantage_epsilon)
    else:
        advantages = objectives.centred(rewards)
    if program.drop_flat_groups:
        samples = _without_flat_groups(samples, objectives.group_spread(rewards))
    return advantages, samples, _reward_metrics(rewards, advantages)


def _reinforce_generator(
    program: Program,
    state: TrainState,
    samples: PackedRows,
    advantages: Float[Array, "B N"],
    frozen: Frozen,
) -> Update:
    count = _response_tokens(samples)
    flat = advantages.reshape(advantages.size)
    reference = state.reference if program.kl_coefficient > 0 else None

    def loss_of(
        policy: Params, rows: PackedRows, base: Any, other: Any, count: Any, flat: Any
    ) -> Any:
        other = None if other is None else adapters.join(base, other)
        return losses.grpo_loss(program, adapters.join(base, policy), rows, count, flat, other)

    given = program.generator, state.generator, samples
    loss, gradients, parts = accumulate(loss_of, *given, frozen.generator, reference, count, flat)
    parts = jax.tree.map(jnp.sum, parts)
    if program.drop_flat_groups:  # where that is all of them, there is no token to measure
        parts = jax.tree.map(lambda x: jnp.where(jnp.any(samples.mask), x, jnp.nan), parts)
    return Update(loss, gradients, parts)


def _without_flat_groups(samples: PackedRows, spread: Float[Array, " B"]) -> PackedRows:
    """Returns the samples without the tokens of groups whose rewards have no spread: they leave the
    loss, the KL included, and the count of tokens that it is divided by."""
    each = samples.ends.shape[2]
    kept = jnp.repeat(spread >= FLAT, each, total_repeat_length=spread.size * each)
    of_tokens = kept.at[samples.sequences].get(out_sharding=sharding.spec(None, "batch", None))
    return samples._replace(mask=samples.mask & of_tokens)


def _response_tokens(rows: PackedRows) -> Float[Array, ""]:
    """Returns by what a token mean over the whole batch divides."""
    return jnp.maximum(jnp.sum(rows.mask), 1).astype(jnp.float32)


def _over_teacher(scores: Float[Array, "B S"]) -> Metrics:
    """The rewards minus the teacher's score. The loss leaves the level of all scores free, so that
    `reward/mean` alone drifts; the difference does not."""
    difference = scores[:, 1:] - scores[:, :1]
    mean = objectives.masked_mean(difference, jnp.isfinite(difference))
    return {"reward/minus_teacher": mean}


def _discriminator_reward(scores: Float[Array, "B N"]) -> Metrics:
    """What the discriminator's score alone would pay, as of every other term."""
    return {
        "reward/discriminator/mean": objectives.masked_mean(scores, jnp.isfinite(scores)),
        "reward/discriminator/std": jnp.mean(objectives.group_spread(scores)),
    }


def _reward_metrics(rewards: Float[Array, "B N"], advantages: Float[Array, "B N"]) -> Metrics:
    spread = objectives.group_spread(rewards)
    return {
        "reward/mean": objectives.masked_mean(rewards, jnp.isfinite(rewards)),
        "reward/std": jnp.mean(spread),
        "advantage/dead_groups": jnp.mean((spread < FLAT).astype(jnp.float32)),
        "advantage/norm": jnp.sqrt(jnp.mean(jnp.square(advantages))),
    }

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

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gad_jax.core import losses, objectives
from gad_jax.core.program import Program
from gad_jax.core.updates import Update, accumulate, commit
from gad_jax.distributed import sharding
from gad_jax.models import adapters
from gad_jax.types import NOTHING, Frozen, Metrics, PackedRows, Params, TrainState


@jax.jit(static_argnames="program", donate_argnames="state")
def gad_step(
    program: Program,
    state: TrainState,
    pairs: PackedRows,
    samples: PackedRows,
    frozen: Frozen = NOTHING,
) -> tuple[TrainState, Metrics]:
    """One iteration of GAD: both networks' updates, in one program.

    `pairs` holds the teacher's response (first) and the samples of every prompt, `samples` the
    samples alone. Rewards are the scores of the discriminator's own forward pass, so of D before
    its update.
    """
    with jax.named_scope("discriminator"):
        discriminator, scores = _update_discriminator(program, state, pairs, frozen)
    with jax.named_scope("advantages"):
        rewards = jax.lax.stop_gradient(scores[:, 1:])
        advantages = objectives.group_advantages(rewards, program.advantage_epsilon)
        metrics = _reward_metrics(rewards, advantages) | _over_teacher(scores)
    with jax.named_scope("generator"):
        generator = _reinforce_generator(program, state, samples, advantages, frozen)
    return commit(program, state, generator, discriminator, metrics)


@jax.jit(static_argnames="program", donate_argnames="state")
def warmup_step(
    program: Program,
    state: TrainState,
    pairs: PackedRows,
    teacher: PackedRows,
    frozen: Frozen = NOTHING,
) -> tuple[TrainState, Metrics]:
    """Warm-up (section 2.3 of the paper): D on the student's own samples, G by cross-entropy."""
    with jax.named_scope("discriminator"):
        discriminator, _ = _update_discriminator(program, state, pairs, frozen)
    with jax.named_scope("generator"):
        generator = _imitate_teacher(program, state, teacher, frozen)
    return commit(program, state, generator, discriminator, {})


@jax.jit(static_argnames="program", donate_argnames="state")
def discriminator_step(
    program: Program, state: TrainState, pairs: PackedRows, frozen: Frozen = NOTHING
) -> tuple[TrainState, Metrics]:
    """The discriminator's update alone; `pairs` holds teacher and samples of every prompt."""
    with jax.named_scope("discriminator"):
        discriminator, _ = _update_discriminator(program, state, pairs, frozen)
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


def _update_discriminator(
    program: Program, state: TrainState, pairs: PackedRows, frozen: Frozen
) -> tuple[Update, Float[Array, "B S"]]:
    """Returns the discriminator's update, without gradients where it is frozen, and all scores in
    the order of the prompts, the teacher's first."""
    prompts = pairs.groups.size
    count = jnp.float32(prompts * (pairs.ends.shape[2] - 1))
    pair_loss = _on_base(partial(losses.pair_loss, program))
    base = _discriminator_base(program, frozen)
    if program.train_discriminator:
        loss, gradients, scores = accumulate(pair_loss, state.discriminator, pairs, base, count)
    else:
        loss, scores = jax.lax.map(lambda r: pair_loss(state.discriminator, r, base, count), pairs)
        loss, gradients = jnp.sum(loss), None
    order = pairs.groups.reshape(prompts)
    scores = scores.reshape(prompts, scores.shape[-1])
    scores = jnp.zeros_like(scores).at[order].set(scores, out_sharding=sharding.spec(None, None))
    # One non-finite score is an accident; where half of the pairs have one, the network is broken.
    finite = losses.finite_pairs(scores)
    loss = jnp.where(2 * jnp.sum(finite) > count, loss, jnp.nan)
    return Update(loss, gradients, _score_metrics(scores)), scores


def _on_base(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Returns loss(trained, rows, base, …) of a loss(network, rows, …)."""

    def joined(trained: Params, rows: PackedRows, base: Params | None, *shared: Any) -> Any:
        return loss(adapters.join(base, trained), rows, *shared)

    return joined


def _discriminator_base(program: Program, frozen: Frozen) -> Params | None:
    """Returns the discriminator's own base, or the generator's, which it shares."""
    if program.discriminator.lora is None or frozen.discriminator is not None:
        return frozen.discriminator
    return adapters.without_head(frozen.generator)


def _imitate_teacher(
    program: Program, state: TrainState, teacher: PackedRows, frozen: Frozen
) -> Update:
    count = _response_tokens(teacher)
    loss = _on_base(partial(losses.imitation_loss, program))
    loss, gradients, parts = accumulate(loss, state.generator, teacher, frozen.generator, count)
    return Update(loss, gradients, jax.tree.map(jnp.sum, parts))


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

    loss, gradients, parts = accumulate(
        loss_of, state.generator, samples, frozen.generator, reference, count, flat
    )
    return Update(loss, gradients, jax.tree.map(jnp.sum, parts))


def _response_tokens(rows: PackedRows) -> Float[Array, ""]:
    """Returns by what a token mean over the whole batch divides."""
    return jnp.maximum(jnp.sum(rows.mask), 1).astype(jnp.float32)


def _score_metrics(scores: Float[Array, "B S"]) -> Metrics:
    teacher, student = scores[:, :1], scores[:, 1:]

    def mean(x: Array) -> Array:
        return objectives.masked_mean(x, jnp.isfinite(x))

    correct = (teacher > student).astype(jnp.float32)
    return {
        "discriminator/accuracy": objectives.masked_mean(correct, losses.finite_pairs(scores)),
        "discriminator/margin": mean(teacher - student),
        "discriminator/teacher_score": mean(teacher),
        "discriminator/student_score": mean(student),
        "discriminator/nonfinite_scores": jnp.sum(~jnp.isfinite(scores)).astype(jnp.float32),
    }


def _over_teacher(scores: Float[Array, "B S"]) -> Metrics:
    """The rewards minus the teacher's score. The loss leaves the level of all scores free, so that
    `reward/mean` alone drifts; the difference does not."""
    difference = scores[:, 1:] - scores[:, :1]
    mean = objectives.masked_mean(difference, jnp.isfinite(difference))
    return {"reward/minus_teacher": mean}


def _reward_metrics(rewards: Float[Array, "B N"], advantages: Float[Array, "B N"]) -> Metrics:
    spread = objectives.group_spread(rewards)
    return {
        "reward/mean": objectives.masked_mean(rewards, jnp.isfinite(rewards)),
        "reward/std": jnp.mean(spread),
        "advantage/dead_groups": jnp.mean((spread < 1e-6).astype(jnp.float32)),
        "advantage/norm": jnp.sqrt(jnp.mean(jnp.square(advantages))),
    }

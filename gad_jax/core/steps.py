"""The compiled steps: one optimizer update of the generator, the discriminator, or both.

`gad_step` is GRPO for G and Bradley-Terry for D in one program; `warmup_step` and `seqkd_step` are
made of the same parts. Each takes the state and packed rows and returns the next state and metrics.
Everything static lives in a frozen `Program`. A gradient is summed over micro-batches of whole
groups and divided once by the global count, so that it does not depend on how they were cut.

A step is transactional: unless every loss and gradient norm is finite, neither network nor its
optimizer changes, and the step is counted as skipped. A single score that is not finite costs only
its sample: no pair with it counts, and its advantage is 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gad_jax.core import losses, objectives
from gad_jax.core.program import Program
from gad_jax.core.updates import accumulate, commit
from gad_jax.distributed import sharding
from gad_jax.types import Metrics, PackedRows, Params, TrainState


@jax.jit(static_argnames="program", donate_argnames="state")
def seqkd_step(
    program: Program, state: TrainState, teacher: PackedRows
) -> tuple[TrainState, Metrics]:
    """Cross-entropy of the generator on the teacher's responses (the SeqKD baseline).

    `teacher` holds one response per prompt.
    """
    with jax.named_scope("generator"):
        gradients, metrics = _imitate(program, state, teacher)
    return commit(program, state, gradients, None, metrics)


@jax.jit(static_argnames="program", donate_argnames="state")
def discriminator_step(
    program: Program, state: TrainState, pairs: PackedRows
) -> tuple[TrainState, Metrics]:
    """The discriminator's update alone; `pairs` holds teacher and samples of every prompt."""
    with jax.named_scope("discriminator"):
        _, gradients, metrics = _discriminate(program, state, pairs)
    return commit(program, state, None, gradients, metrics)


@jax.jit(static_argnames="program", donate_argnames="state")
def warmup_step(
    program: Program, state: TrainState, pairs: PackedRows, teacher: PackedRows
) -> tuple[TrainState, Metrics]:
    """Warm-up (section 2.3 of the paper): D on the student's own samples, G by cross-entropy."""
    with jax.named_scope("discriminator"):
        _, discriminator, metrics = _discriminate(program, state, pairs)
    with jax.named_scope("generator"):
        generator, more = _imitate(program, state, teacher)
    return commit(program, state, generator, discriminator, metrics | more)


@jax.jit(static_argnames="program", donate_argnames="state")
def gad_step(
    program: Program, state: TrainState, pairs: PackedRows, samples: PackedRows
) -> tuple[TrainState, Metrics]:
    """One iteration of GAD: both networks' updates, in one program.

    `pairs` holds the teacher's response (first) and the samples of every prompt, `samples` the
    samples alone. Rewards are the scores of the discriminator's own forward pass, so of D before
    its update.
    """
    with jax.named_scope("discriminator"):
        scores, discriminator, metrics = _discriminate(program, state, pairs)
    with jax.named_scope("advantages"):
        rewards = jax.lax.stop_gradient(scores[:, 1:])
        advantages = objectives.group_advantages(rewards, program.advantage_epsilon)
        metrics |= _reward_metrics(rewards, advantages)
    with jax.named_scope("generator"):
        generator, more = _reinforce(program, state, samples, advantages)
    return commit(program, state, generator, discriminator, metrics | more)


def _discriminate(
    program: Program, state: TrainState, pairs: PackedRows
) -> tuple[Float[Array, "B S"], Params | None, Metrics]:
    """Returns all scores, the gradient of the discriminator's loss (None where it is frozen), and
    its metrics."""
    pair_losses = {
        "bradley_terry": objectives.bradley_terry_loss,
        "cross_entropy": objectives.cross_entropy_loss,
    }
    pair_loss = pair_losses[program.discriminator_objective]
    prompts = pairs.groups.size
    count = prompts * (pairs.ends.shape[2] - 1)

    def loss(params: Params, rows: PackedRows) -> tuple[Array, Array]:
        scores = losses.response_scores(program.discriminator, params, rows)
        finite = jnp.where(jnp.isfinite(scores), scores, 0.0)
        each = pair_loss(finite[:, 0], finite[:, 1:])
        return jnp.sum(jnp.where(_whole_pairs(scores), each, 0.0)) / count, scores

    if program.train_discriminator:
        total, gradients, scores = accumulate(loss, state.discriminator, pairs)
    else:
        total, scores = jax.lax.map(lambda rows: loss(state.discriminator, rows), pairs)
        total, gradients = jnp.sum(total), None
    order = pairs.groups.reshape(prompts)
    scores = scores.reshape(prompts, scores.shape[-1])
    scores = jnp.zeros_like(scores).at[order].set(scores, out_sharding=sharding.spec(None, None))
    # One lost score is an accident; where half of the pairs are lost, the network is broken.
    pairs_left = _whole_pairs(scores)
    total = jnp.where(2 * jnp.sum(pairs_left) > count, total, jnp.nan)
    teacher, student = scores[:, :1], scores[:, 1:]

    def mean(x: Array) -> Array:
        return objectives.masked_mean(x, jnp.isfinite(x))

    right = (teacher > student).astype(jnp.float32)
    metrics = {
        "discriminator/loss": total,
        "discriminator/accuracy": objectives.masked_mean(right, pairs_left),
        "discriminator/margin": mean(teacher - student),
        "discriminator/teacher_score": mean(teacher),
        "discriminator/student_score": mean(student),
        "discriminator/lost_scores": jnp.sum(~jnp.isfinite(scores)).astype(jnp.float32),
    }
    return scores, gradients, metrics


def _whole_pairs(scores: Float[Array, "B S"]) -> Bool[Array, "B N"]:
    """Returns which pairs of teacher and sample have two finite scores."""
    return jnp.isfinite(scores[:, :1]) & jnp.isfinite(scores[:, 1:])


def _imitate(program: Program, state: TrainState, teacher: PackedRows) -> tuple[Params, Metrics]:
    """Returns the gradient of the token-mean cross-entropy on the teacher's responses."""
    count = jnp.maximum(jnp.sum(teacher.mask), 1).astype(jnp.float32)

    def token_loss(logprobs: Array, entropy: Array) -> losses.PerToken:
        return -logprobs, {"entropy": entropy}

    def loss(params: Params, rows: PackedRows, count: Array) -> tuple[Array, Metrics]:
        chunk = program.vocabulary_chunk
        return losses.response_loss(program.generator, params, rows, count, 1.0, chunk, token_loss)

    value, gradients, parts = accumulate(loss, state.generator, teacher, count)
    return gradients, {"generator/loss": value} | jax.tree.map(jnp.sum, parts)


def _reinforce(
    program: Program, state: TrainState, samples: PackedRows, advantages: Float[Array, "B N"]
) -> tuple[Params, Metrics]:
    """Returns the gradient of the GRPO loss: surrogate, KL to the reference, entropy bonus.

    The samples are fresh, so log p_old is log p with its gradient stopped: ρ = 1.
    """
    p = program
    count = jnp.maximum(jnp.sum(samples.mask), 1).astype(jnp.float32)
    flat = advantages.reshape(advantages.size)

    def token_loss(
        logprobs: Array, entropy: Array, advantage: Array, sampled: Array, *reference: Array
    ) -> losses.PerToken:
        old = jax.lax.stop_gradient(logprobs)
        policy = objectives.clipped_surrogate(
            logprobs, old, advantage, p.clip_low, p.clip_high, p.dual_clip, p.log_ratio_max
        )
        parts = {
            "generator/policy_loss": policy,
            "logprobs/gap": jnp.abs(old - sampled),
            "entropy": entropy,
        }
        value = policy
        for log_reference in reference:
            kl = objectives.kl_k3(logprobs, log_reference, p.log_ratio_max, p.kl_max)
            parts["kl/reference"] = kl
            value += p.kl_coefficient * kl
        if p.entropy_coefficient > 0:
            value -= p.entropy_coefficient * entropy
        return value, parts

    def loss(
        params: Params, rows: PackedRows, count: Array, flat: Array, reference_params: Any
    ) -> tuple[Array, Metrics]:
        advantage = flat.at[rows.sequences].get(out_sharding=sharding.spec("batch", None))
        inputs = [advantage, rows.sampled_logprobs]
        if p.kl_coefficient > 0:
            with jax.named_scope("reference"):
                reference, _ = losses.response_logprobs(
                    p.generator, reference_params, rows, p.temperature, p.vocabulary_chunk
                )
            inputs.append(reference)
        return losses.response_loss(
            p.generator, params, rows, count, p.temperature, p.vocabulary_chunk, token_loss, *inputs
        )

    value, gradients, parts = accumulate(
        loss, state.generator, samples, count, flat, state.reference
    )
    return gradients, {"generator/loss": value} | jax.tree.map(jnp.sum, parts)


def _reward_metrics(
    rewards: Float[Array, "B N"], advantages: Float[Array, "B N"]
) -> dict[str, Array]:
    spread = objectives.group_spread(rewards)
    return {
        "reward/mean": objectives.masked_mean(rewards, jnp.isfinite(rewards)),
        "reward/std": jnp.mean(spread),
        "advantage/dead_groups": jnp.mean((spread < 1e-6).astype(jnp.float32)),
        "advantage/norm": jnp.sqrt(jnp.mean(jnp.square(advantages))),
    }

"""The compiled steps: one optimizer update of the generator, the discriminator, or both.

`gad_step` is GRPO for G and Bradley-Terry for D in one program; `warmup_step` and `seqkd_step` are
made of the same parts. Each takes the state and packed rows and returns the next state and metrics.
Everything static lives in a frozen `Program`. A gradient is summed over micro-batches of whole
groups and divided once by the global count, so that it does not depend on how they were cut.

A step is transactional: unless every loss and gradient norm is finite, neither network nor its
optimizer changes, and the step is counted as skipped. A single score that is not finite costs only
its sample: no pair with it counts, and its advantage is 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from gad_jax.core import losses, objectives
from gad_jax.distributed import sharding
from gad_jax.models.decoder import DecoderConfig
from gad_jax.types import Metrics, Params, Rows, TrainState


@dataclasses.dataclass(frozen=True)
class Program:
    """What a stage's steps are compiled for."""

    generator: DecoderConfig
    discriminator: DecoderConfig
    generator_optimizer: optax.GradientTransformationExtraArgs
    discriminator_optimizer: optax.GradientTransformationExtraArgs
    discriminator_objective: Literal["bradley_terry", "cross_entropy"]
    vocabulary_chunk: int
    temperature: float
    clip_low: float
    clip_high: float
    dual_clip: float
    kl_coefficient: float
    kl_max: float
    log_ratio_max: float
    entropy_coefficient: float
    advantage_epsilon: float
    train_discriminator: bool = True


@sharding.jit(static="program", donate="state")
def seqkd_step(program: Program, state: TrainState, teacher: Rows) -> tuple[TrainState, Metrics]:
    """Cross-entropy of the generator on the teacher's responses (the SeqKD baseline).

    `teacher` holds one response per prompt.
    """
    with jax.named_scope("generator"):
        gradients, metrics = _imitate(program, state, teacher)
    return _commit(program, state, gradients, None, metrics)


@sharding.jit(static="program", donate="state")
def discriminator_step(
    program: Program, state: TrainState, pairs: Rows
) -> tuple[TrainState, Metrics]:
    """The discriminator's update alone; `pairs` holds teacher and samples of every prompt."""
    with jax.named_scope("discriminator"):
        _, gradients, metrics = _discriminate(program, state, pairs)
    return _commit(program, state, None, gradients, metrics)


@sharding.jit(static="program", donate="state")
def warmup_step(
    program: Program, state: TrainState, pairs: Rows, teacher: Rows
) -> tuple[TrainState, Metrics]:
    """Warm-up (section 2.3 of the paper): D on the student's own samples, G by cross-entropy."""
    with jax.named_scope("discriminator"):
        _, discriminator, metrics = _discriminate(program, state, pairs)
    with jax.named_scope("generator"):
        generator, more = _imitate(program, state, teacher)
    return _commit(program, state, generator, discriminator, metrics | more)


@sharding.jit(static="program", donate="state")
def gad_step(
    program: Program, state: TrainState, pairs: Rows, samples: Rows
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
    return _commit(program, state, generator, discriminator, metrics | more)


def _discriminate(
    program: Program, state: TrainState, pairs: Rows
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

    def loss(params: Params, rows: Rows) -> tuple[Array, Array]:
        scores = losses.response_scores(program.discriminator, params, rows)
        finite = jnp.where(jnp.isfinite(scores), scores, 0.0)
        each = pair_loss(finite[:, 0], finite[:, 1:])
        return jnp.sum(jnp.where(_whole_pairs(scores), each, 0.0)) / count, scores

    if program.train_discriminator:
        total, gradients, scores = _accumulate(loss, state.discriminator, pairs)
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


def _imitate(program: Program, state: TrainState, teacher: Rows) -> tuple[Params, Metrics]:
    """Returns the gradient of the token-mean cross-entropy on the teacher's responses."""
    count = jnp.maximum(jnp.sum(teacher.mask), 1).astype(jnp.float32)

    def token_loss(logprobs: Array, entropy: Array) -> losses.PerToken:
        return -logprobs, {"entropy": entropy}

    def loss(params: Params, rows: Rows, count: Array) -> tuple[Array, Metrics]:
        chunk = program.vocabulary_chunk
        return losses.response_loss(program.generator, params, rows, count, 1.0, chunk, token_loss)

    value, gradients, parts = _accumulate(loss, state.generator, teacher, count)
    return gradients, {"generator/loss": value} | jax.tree.map(jnp.sum, parts)


def _reinforce(
    program: Program, state: TrainState, samples: Rows, advantages: Float[Array, "B N"]
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
        params: Params, rows: Rows, count: Array, flat: Array, reference_params: Any
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

    value, gradients, parts = _accumulate(
        loss, state.generator, samples, count, flat, state.reference
    )
    return gradients, {"generator/loss": value} | jax.tree.map(jnp.sum, parts)


def _accumulate(
    loss: Callable[..., tuple[Array, Any]], params: Params, rows: Rows, *shared: Any
) -> tuple[Array, Params, Any]:
    """Returns the sum of `loss(params, micro-batch, *shared)` over micro-batches, its gradient, and
    each one's extras.

    A replica sums the gradients of its own rows; those of all replicas meet once, after the last
    micro-batch. So the loss is that of all rows in each of them, its gradient that of its own.
    Arrays that come from outside are `shared`: inside of a replica a loss cannot close over them.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def local(params: Params, rows: Rows, *shared: Any) -> tuple[Array, Params, Any]:
        if rows.tokens.shape[0] == 1:
            micro = jax.tree.map(lambda x: x[0], rows)
            (value, extra), gradients = value_and_grad(params, micro, *shared)
            extra = jax.tree.map(lambda x: x[None], extra)
        else:

            def add(carry: Any, micro: Rows) -> tuple[Any, Any]:
                (value, extra), gradients = value_and_grad(params, micro, *shared)
                return jax.tree.map(jnp.add, carry, (value, gradients)), extra

            start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
            (value, gradients), extra = jax.lax.scan(add, start, rows)
        return value, sharding.sum_of_replicas(gradients), extra

    split = jax.tree.map(lambda _: P(None, "replica"), rows)
    specs = (P(), split._replace(ends=P(), groups=P()), *(P() for _ in shared))
    return sharding.in_each_replica(local, specs, P())(params, rows, *shared)


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


def _commit(
    program: Program,
    state: TrainState,
    generator: Params | None,
    discriminator: Params | None,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """Applies the gradients that there are, unless anything is not finite."""
    norms, broken = {}, {}
    for name, gradients in (("generator", generator), ("discriminator", discriminator)):
        if gradients is not None:
            squares = jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)])
            norms[f"{name}/gradient_norm"] = jnp.sqrt(jnp.sum(squares))
            lost = ~jnp.isfinite(squares)
            broken[f"{name}/broken_leaf"] = jnp.where(jnp.any(lost), jnp.argmax(lost), -1)
    values = [value for name, value in metrics.items() if name.endswith("/loss")]
    finite = jnp.all(jnp.isfinite(jnp.stack([*values, *norms.values()])))

    def update(
        optimizer: optax.GradientTransformationExtraArgs,
        gradients: Params | None,
        params: Any,
        moments: Any,
    ) -> tuple[Any, Any]:
        if gradients is None:
            return params, moments
        # where something is not finite, the optimizer keeps its moments: it updates them in place
        updates, moments = optimizer.update(gradients, moments, params, finite=finite)
        new = optax.apply_updates(params, updates)
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, params), moments

    with jax.named_scope("optimizer"):
        new_generator = update(
            program.generator_optimizer, generator, state.generator, state.generator_optimizer
        )
        new_discriminator = update(
            program.discriminator_optimizer,
            discriminator,
            state.discriminator,
            state.discriminator_optimizer,
        )
    skips = jnp.where(finite, jnp.stack([state.skips[0], 0]), state.skips + 1)
    state = state._replace(
        step=state.step + 1,
        generator=new_generator[0],
        generator_optimizer=new_generator[1],
        discriminator=new_discriminator[0],
        discriminator_optimizer=new_discriminator[1],
        skips=skips,
    )
    counts = {"skips/total": skips[0], "skips/in_a_row": skips[1]}
    return state, metrics | norms | broken | counts

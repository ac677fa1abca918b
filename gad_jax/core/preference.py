"""Preferring the teacher's response to others: DPO on packed groups, and D's scores of samples.

The DPO loss of a pair needs the log-probabilities of whole responses. So logits are made twice:
once for those, and once for the gradient, in which every token has the weight of its response. The
hidden states are computed once, and no logits are kept between the two.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gad_jax.core import forward
from gad_jax.core.discriminator import scores_of
from gad_jax.core.forward import PerToken, TokenLoss
from gad_jax.core.program import Program
from gad_jax.core.updates import Update, accumulate, commit
from gad_jax.distributed import parallel, sharding
from gad_jax.models import adapters, decoder
from gad_jax.types import NOTHING, Frozen, Metrics, PackedRows, Params, TrainState

TEMPERATURE = 1.0
"""DPO compares the distributions that answer at temperature 1, as its paper does."""


@jax.jit(static_argnames="program", donate_argnames="state")
def dpo_step(
    program: Program, state: TrainState, pairs: PackedRows, frozen: Frozen = NOTHING
) -> tuple[TrainState, Metrics]:
    """Direct preference optimisation (arXiv:2305.18290) against the stage's first weights.

    `pairs` holds the teacher's response (first) and the rejected ones of every prompt.
    """
    with jax.named_scope("generator"):
        generator = _prefer_teacher(program, state, pairs, frozen)
    return commit(program, state, generator, None, {})


@jax.jit(static_argnames="program")
def score_responses(
    program: Program, discriminator: Params, samples: PackedRows, frozen: Frozen = NOTHING
) -> Float[Array, "B N"]:
    """Returns D's score of every response, in the order of the prompts; the mean of its heads."""
    scores = scores_of(program, discriminator, samples, frozen)
    return scores if scores.ndim == 2 else jnp.mean(scores, axis=-1)


def dpo_loss(
    chosen: Float[Array, " G"], rejected: Float[Array, "G N"], beta: float
) -> Float[Array, "G N"]:
    """Returns -log σ(β (chosen - rejected)) for each pair, in nats (equation 7 of the DPO paper).

    Both are log π - log π_ref of whole responses.
    """
    return jax.nn.softplus(-beta * (chosen[:, None] - rejected))


def _prefer_teacher(
    program: Program, state: TrainState, pairs: PackedRows, frozen: Frozen
) -> Update:
    members = pairs.ends.shape[2]
    responses = pairs.groups.size * members
    teacher = pairs.mask & (pairs.sequences % members == 0)
    counts = jnp.stack([jnp.sum(pairs.mask), jnp.sum(teacher)]).astype(jnp.float32)

    def loss_of(
        policy: Params, rows: PackedRows, base: Any, reference: Params, counts: Array
    ) -> Any:
        policy, reference = adapters.join(base, policy), adapters.join(base, reference)
        return _surrogate(program, responses, policy, rows, reference, counts)

    given = program.generator, state.generator, pairs
    _, gradients, parts = accumulate(loss_of, *given, frozen.generator, state.reference, counts)
    metrics = jax.tree.map(jnp.sum, parts)
    return Update(metrics.pop("loss"), gradients, metrics)


def _surrogate(
    program: Program,
    responses: int,
    policy: Params,
    rows: PackedRows,
    reference: Params,
    counts: Float[Array, "2"],
) -> tuple[Float[Array, ""], Metrics]:
    """Returns a number with the gradient of a micro-batch's loss, and with it the loss itself.

    `responses` counts those of the step, `counts` all response tokens and the teacher's.
    """
    config, chunk = program.generator, program.vocabulary_chunk
    with jax.named_scope("reference"):
        other, _ = forward.response_logprobs(config, reference, rows, TEMPERATURE, chunk)
    x, _ = decoder.hidden(config, policy, rows.tokens, rows.positions, rows.segments)
    head = decoder.head(config, policy)
    fixed = jax.lax.stop_gradient((x, head))
    logprobs, _ = forward.projected_logprobs(config, *fixed, rows, TEMPERATURE, chunk)
    sums, others = (_response_sums(each, rows, responses) for each in (logprobs, other))
    loss_of = partial(_loss, program, rows, others, counts, responses)
    (loss, metrics), weights = jax.value_and_grad(loss_of, has_aux=True)(sums)
    per_token = TokenLoss(config, TEMPERATURE, chunk, _weighted)
    # `projected_sums` divides by the count.
    weights = weights.at[rows.sequences].get(out_sharding=sharding.spec("batch", None)) * counts[0]
    surrogate, parts = forward.projected_sums(per_token, x, head, rows, counts[0], weights)
    return surrogate, jax.lax.stop_gradient(parts | metrics | {"loss": loss})


def _weighted(logprobs: Array, entropy: Array, weights: Array) -> PerToken:
    return weights * logprobs, {"entropy": entropy}


def _response_sums(
    values: Float[Array, "M T"], rows: PackedRows, responses: int
) -> Float[Array, " responses"]:
    """Returns the sum over each response's tokens; 0 for responses of other micro-batches."""
    per_row = parallel.batch_spec(0)

    def in_shard(values: Array, mask: Array, sequences: Array) -> Array:
        found = jnp.where(mask, values, 0.0).ravel()
        return jnp.zeros(responses).at[sequences.ravel()].add(found)[None]

    in_shards = parallel.shard_map(in_shard, (per_row, per_row, per_row), per_row)
    return parallel.psum_over_replicas(
        jnp.sum(in_shards(values, rows.mask, rows.sequences), axis=0)
    )


def _loss(
    program: Program,
    rows: PackedRows,
    reference: Float[Array, " responses"],
    counts: Float[Array, "2"],
    responses: int,
    logprobs: Float[Array, " responses"],
) -> tuple[Float[Array, ""], Metrics]:
    """Returns a micro-batch's part of the loss and metrics, from log-probabilities of responses."""
    members = rows.ends.shape[1]
    places = rows.groups[:, None] * members + jnp.arange(members)

    def of_groups(x: Array) -> tuple[Array, Array]:
        found = x.at[places].get(out_sharding=sharding.spec(None, None))
        return found[:, 0], found[:, 1:]

    teacher, others = of_groups(logprobs)
    chosen, rejected = of_groups(program.dpo_beta * (logprobs - reference))
    groups = responses // members
    pairs = groups * (members - 1)
    loss = jnp.sum(dpo_loss(chosen, rejected, 1.0)) / pairs  # β is in both
    loss += program.dpo_sft_coefficient * -jnp.sum(teacher) / counts[1]
    margin = chosen[:, None] - rejected
    return loss, {
        "dpo/accuracy": jnp.sum(margin > 0) / pairs,
        "dpo/margin": jnp.sum(margin) / pairs,
        "dpo/chosen_reward": jnp.sum(chosen) / groups,
        "dpo/rejected_reward": jnp.sum(rejected) / pairs,
        "dpo/chosen_logprobs": jnp.sum(teacher) / counts[1],
        "dpo/rejected_logprobs": jnp.sum(others) / (counts[0] - counts[1]),
    }

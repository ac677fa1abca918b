"""The losses of the steps on packed rows; those of GAD from the equations of `objectives.py`.

Each is a flat function (program, params, one micro-batch, …) → (loss, extras). A loss is divided by
a count of the whole batch, so losses and gradients of micro-batches add up to those of the batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gad_jax.core import forward, objectives
from gad_jax.core.forward import PerToken, TokenLoss
from gad_jax.core.program import Program
from gad_jax.distributed import sharding
from gad_jax.models import adapters
from gad_jax.types import Metrics, PackedRows, Params


def on_base(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Returns loss(trained, rows, base, …) of a loss(network, rows, …)."""

    def joined(trained: Params, rows: PackedRows, base: Params | None, *shared: Any) -> Any:
        return loss(adapters.join(base, trained), rows, *shared)

    return joined


PAIR_LOSSES = {
    "bradley_terry": objectives.bradley_terry_loss,
    "cross_entropy": objectives.cross_entropy_loss,
}


def pair_loss(
    program: Program,
    params: Params,
    rows: PackedRows,
    count: Float[Array, ""],
    slope: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "G S *heads"]]:
    """The discriminator's loss: the mean over pairs of teacher and sample (equation 1).

    Also returns all scores, the teacher's first. A pair with a non-finite score is dropped. `slope`
    is that of `objectives.length_slope` over the whole batch; None where length is not left out.
    Of several heads, each has its own loss, and the mean of them is returned.
    """
    scores = forward.response_scores(program.discriminator, params, rows)
    longer = None if slope is None else slope * forward.longer_teachers(rows)

    def of_head(scores: Array) -> Array:
        return _head_loss(program, scores, longer) / count

    if program.discriminator.score_heads == 1:
        return of_head(scores), scores
    return jnp.mean(jax.vmap(of_head, in_axes=-1)(scores)), scores


def _head_loss(
    program: Program, scores: Float[Array, "G S"], offset: Float[Array, "G N"] | None
) -> Float[Array, ""]:
    """Returns the sum over the pairs of the scores of one head."""
    finite = jnp.where(jnp.isfinite(scores), scores, 0.0)
    teacher, student = finite[:, 0], finite[:, 1:]
    if offset is not None:
        student = student - offset
    losses = PAIR_LOSSES[program.discriminator_objective](teacher, student)
    if program.label_smoothing > 0:
        losses = objectives.smoothed(losses, teacher, student, program.label_smoothing)
    return jnp.sum(jnp.where(finite_pairs(scores), losses, 0.0))


def finite_pairs(scores: Float[Array, "B S"]) -> Bool[Array, "B N"]:
    """Returns which pairs of teacher and sample have two finite scores."""
    return jnp.isfinite(scores[:, :1]) & jnp.isfinite(scores[:, 1:])


def imitation_loss(
    program: Program, params: Params, rows: PackedRows, count: Float[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """The generator's loss in SeqKD and warm-up: token-mean cross-entropy on teacher responses."""
    loss = TokenLoss(program.generator, 1.0, program.vocabulary_chunk, _imitation_per_token)
    return forward.response_sums(loss, params, rows, count)


def _imitation_per_token(logprobs: Array, entropy: Array, inputs: None) -> PerToken:
    del inputs
    return -logprobs, {"entropy": entropy}


class GrpoInputs(NamedTuple):
    """What the GRPO loss of a token needs next to the policy's own log-probability.

    `sampled_logprobs` are the sampler's: the metric `logprobs/gap` shows how far decoding and
    training differ, by rounding and by an update between them. `reference_logprobs` is None where
    the stage pays no KL.
    """

    advantages: Float[Array, "*n"]
    sampled_logprobs: Float[Array, "*n"]
    reference_logprobs: Float[Array, "*n"] | None


def grpo_loss(
    program: Program,
    params: Params,
    rows: PackedRows,
    count: Float[Array, ""],
    advantages: Float[Array, " responses"],
    reference: Params | None,
) -> tuple[Float[Array, ""], Metrics]:
    """The generator's loss in GAD: clipped surrogate, KL to the reference, entropy bonus.

    `advantages` has one number per response of the step, group by group. All three are of the
    distribution that was sampled from: with top-k or top-p, softmax over the tokens kept then
    (`rows.thresholds`).

    With p a token's probability now, q that under the sampler, C `program.importance_max` and
    sg(p) p without a gradient, the surrogate's ratio ρ and the weight w of a token are

        behaviour "trained", C = 0:  ρ = p / sg(p), w = 1
        behaviour "sampler", C = 0:  ρ = p / q,     w = 1
        either, C > 0:               ρ = p / sg(p), w = min(sg(p) / q, C)

        loss = w · (surrogate(A, ρ) + kl_coefficient · k3) - entropy_coefficient · entropy

    So p / q counts once: it is clipped, or truncated (`objectives.importance_weights`). Where ρ is
    p / sg(p) it is 1 and never clipped. A weight is for the KL too, as both are estimates from the
    token that the sampler drew. The entropy is a sum over all tokens and needs none.
    """
    reference_logprobs = None
    if reference is not None:
        with jax.named_scope("reference"):
            reference_logprobs = _reference_logprobs(program, params, reference, rows)
    inputs = GrpoInputs(
        advantages=advantages.at[rows.sequences].get(out_sharding=sharding.spec("batch", None)),
        sampled_logprobs=rows.sampled_logprobs,
        reference_logprobs=reference_logprobs,
    )
    per_token = partial(_grpo_per_token, program)
    loss = TokenLoss(program.generator, program.temperature, program.vocabulary_chunk, per_token)
    return forward.response_sums(loss, params, rows, count, inputs)


def _reference_logprobs(
    program: Program, params: Params, reference: Params, rows: PackedRows
) -> Array:
    """Returns the reference's log-probs among the tokens that the sampler could draw.

    k3 is an unbiased estimate of the KL only where both distributions have the same tokens.
    """
    options = (rows, program.temperature, program.vocabulary_chunk)
    if rows.thresholds is None:
        return forward.response_logprobs(program.generator, reference, *options)[0]
    sampler = jax.lax.stop_gradient(params)
    return forward.restricted_logprobs(program.generator, reference, sampler, *options)


def _grpo_per_token(
    program: Program, logprobs: Array, entropy: Array, inputs: GrpoInputs
) -> PerToken:
    now = jax.lax.stop_gradient(logprobs)
    is_live = program.behaviour == "sampler" and program.importance_max == 0
    clips = program.clip_low, program.clip_high, program.dual_clip
    policy_loss = objectives.clipped_surrogate(
        logprobs,
        inputs.sampled_logprobs if is_live else now,
        inputs.advantages,
        *clips,
        program.log_ratio_max,
    )
    parts = {"logprobs/gap": jnp.abs(now - inputs.sampled_logprobs), "entropy": entropy}
    if is_live:
        ratio = objectives.probability_ratio(now, inputs.sampled_logprobs, program.log_ratio_max)
        clipped = objectives.clip_binds(ratio, inputs.advantages, *clips)
        parts["logprobs/ratio_mean"] = ratio
        parts["logprobs/ratio_clipped"] = clipped.astype(jnp.float32)
    weights = None
    if program.importance_max > 0:
        weights, truncated = objectives.importance_weights(
            now, inputs.sampled_logprobs, program.importance_max, program.log_ratio_max
        )
        policy_loss *= weights
        parts["logprobs/importance_mean"] = weights
        parts["logprobs/importance_truncated"] = truncated.astype(jnp.float32)
    parts["generator/policy_loss"] = policy_loss
    loss = policy_loss
    if inputs.reference_logprobs is not None:
        kl = objectives.kl_k3(
            logprobs, inputs.reference_logprobs, program.log_ratio_max, program.kl_max
        )
        kl = kl if weights is None else kl * weights
        parts["kl/reference"] = kl
        loss += program.kl_coefficient * kl
    if program.entropy_coefficient > 0:
        loss -= program.entropy_coefficient * entropy
    return loss, parts

"""The discriminator's part of a step: its update, and the scores that are paid as rewards."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gad_jax.core import forward, losses, objectives
from gad_jax.core.program import Program
from gad_jax.core.updates import Update, accumulate
from gad_jax.distributed import sharding
from gad_jax.models import adapters
from gad_jax.types import Frozen, Metrics, PackedRows, Params, Replay, TrainState


def update(
    program: Program,
    state: TrainState,
    pairs: PackedRows,
    frozen: Frozen,
    replay: Replay | None = None,
    *,
    alone: bool = False,
) -> tuple[Update, Float[Array, "B S *heads"]]:
    """Returns the discriminator's update, without gradients where it is frozen, and all scores in
    the order of the prompts, the teacher's first.

    Every pair counts alike, those of older answers included, so an update takes the same FLOPs with
    `replay` as without. `alone` is for steps that train D alone: the gate is not for them, or they
    would do nothing.
    """
    count = jnp.float32(pairs.groups.size * (pairs.ends.shape[2] - 1))
    pair_loss = losses.on_base(partial(losses.pair_loss, program))
    slope = _length_slope(program, pairs) if program.length_debias else None
    shared = _base(program, frozen), count, slope
    if program.train_discriminator:
        given = program.discriminator, state.discriminator, pairs
        loss, gradients, scores = accumulate(pair_loss, *given, *shared)
    else:
        loss, scores = jax.lax.map(lambda r: pair_loss(state.discriminator, r, *shared), pairs)
        loss, gradients = jnp.sum(loss), None
    scores = in_order(scores, pairs)
    means = scores if scores.ndim == 2 else jnp.mean(scores, axis=-1)
    # One non-finite score is an accident; where half of the pairs have one, the network is broken.
    finite = losses.finite_pairs(means)
    loss = jnp.where(2 * jnp.sum(finite) > count, loss, jnp.nan)
    metrics = _metrics(means, None if replay is None else replay.old)
    if scores.ndim == 3:
        spread = jnp.std(scores[:, 1:] - scores[:, :1], axis=-1, ddof=1)
        metrics["discriminator/head_spread"] = objectives.masked_mean(spread, finite)
    if slope is not None:
        metrics["discriminator/length_slope"] = slope
    gated = None
    if program.accuracy_gate < 1 and program.train_discriminator and not alone:
        gated = metrics["discriminator/accuracy"] > program.accuracy_gate
        metrics["discriminator/gated"] = gated.astype(jnp.float32)
    return Update(loss, gradients, metrics, gated), scores


def fresh(
    program: Program,
    state: TrainState,
    scores: Float[Array, "B S *heads"],
    frozen: Frozen,
    replay: Replay | None,
) -> Float[Array, "B S *heads"]:
    """Returns the scores with those of the fresh samples where older answers stood.

    It takes one more forward pass, over the K displaced samples of every prompt, of D before its
    update. Without `replay` it takes none.
    """
    if replay is None or replay.displaced is None:
        return scores
    displaced = scores_of(program, state.discriminator, replay.displaced, frozen)
    places = displaced.shape[1]
    # A prompt without older answers keeps the scores of D's own pass.
    old = replay.old[:, -places:]
    old = old.reshape(*old.shape, *(1,) * (scores.ndim - 2))
    last = jnp.where(old, displaced, scores[:, -places:])
    return jnp.concatenate([scores[:, :-places], last], axis=1)


def paid(program: Program, scores: Float[Array, "B S *heads"]) -> Float[Array, "B S"]:
    """Returns one score of each response; of several heads, the mean m_i over them, and for a
    sample i, which is paid for it,

        r_i = m_i - pessimism · s_i,  s_i the standard deviation over heads h of D_h(y_i) - D_h(y_t)

    The level of a head is free for each prompt, so heads can be compared by differences alone.
    """
    if scores.ndim == 2:
        return scores
    means = jnp.mean(scores, axis=-1)
    # The teacher's own difference is zero.
    return means - program.pessimism * jnp.std(scores - scores[:, :1], axis=-1, ddof=1)


def scores_of(
    program: Program, discriminator: Params, rows: PackedRows, frozen: Frozen
) -> Float[Array, "B S *heads"]:
    """Returns the score of every response, in the order of the prompts."""
    network = adapters.join(_base(program, frozen), discriminator)
    scores = jax.lax.map(
        lambda micro: forward.response_scores(program.discriminator, network, micro), rows
    )
    return in_order(scores, rows)


def _length_slope(program: Program, pairs: PackedRows) -> Float[Array, ""]:
    """Returns `objectives.length_slope` of the whole batch."""
    longer = jax.lax.map(forward.longer_teachers, pairs)
    return objectives.length_slope(longer, program.label_smoothing)


def in_order(scores: Float[Array, "U G S *heads"], rows: PackedRows) -> Float[Array, "B S *heads"]:
    """Returns the scores of all micro-batches in the order of the prompts."""
    prompts = rows.groups.size
    order = rows.groups.reshape(prompts)
    scores = scores.reshape(prompts, *scores.shape[2:])
    out = sharding.spec(*(None,) * scores.ndim)
    return jnp.zeros_like(scores).at[order].set(scores, out_sharding=out)


def _base(program: Program, frozen: Frozen) -> Params | None:
    """Returns the discriminator's own base, or the generator's, which it shares."""
    if program.discriminator.lora is None or frozen.discriminator is not None:
        return frozen.discriminator
    return adapters.without_head(frozen.generator)


def _metrics(scores: Float[Array, "B S"], old: Bool[Array, "B N"] | None) -> Metrics:
    """Returns what is measured of the scores; of pairs, only those with a fresh sample count, and
    those with an older answer have an accuracy of their own."""
    teacher, student = scores[:, :1], scores[:, 1:]

    def mean(x: Array, where: Array | None = None) -> Array:
        found = jnp.isfinite(x)
        return objectives.masked_mean(x, found if where is None else found & where)

    new = None if old is None else ~old
    correct = (teacher > student).astype(jnp.float32)
    finite = losses.finite_pairs(scores)
    found = {
        "discriminator/accuracy": mean(correct, finite if new is None else finite & new),
        "discriminator/margin": mean(teacher - student, new),
        "discriminator/teacher_score": mean(teacher),
        "discriminator/student_score": mean(student, new),
        "discriminator/nonfinite_scores": jnp.sum(~jnp.isfinite(scores)).astype(jnp.float32),
    }
    if old is not None:
        found["discriminator/accuracy_replayed"] = mean(correct, finite & old)
    return found

"""The equations of GAD (arXiv:2511.10643): advantages, surrogate, KL, pair losses.

Losses are unreduced, per token or per pair, in float32. Callers mask, sum, and divide once by the
global count. Nothing here knows of batches or models.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_mean(x: Float[Array, "*n"], mask: Bool[Array, "*n"]) -> Float[Array, ""]:
    """Returns the mean of x where mask is True, 0 if nowhere. Exact over the global batch.

    Values under a False mask have no influence, even non-finite ones.
    """
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def group_advantages(rewards: Float[Array, "B N"], eps: float = 1e-6) -> Float[Array, "B N"]:
    """Returns (r - mean) / (std + eps) within each group (section 2.2 of the paper, GRPO).

    The standard deviation is `group_spread`. A group with equal rewards gets zeros. Non-finite
    rewards are left out of their group and get 0.
    """
    return centred(rewards) / (group_spread(rewards)[:, None] + eps)


def centred(rewards: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Returns the rewards minus the mean of their group's finite ones; 0 for those that are not.

    As advantages, these let a group count by how much its rewards differ (Dr. GRPO, Liu and others,
    arXiv:2503.20783). Divided by the standard deviation, a small difference counts as a large one.
    """
    rewards = rewards.astype(jnp.float32)
    valid = jnp.isfinite(rewards)
    # Subtract the best reward first. The float32 mean of eight times 12.3 is off by one unit in the
    # last place, and the division by the spread would make that an advantage of -0.5 for each.
    rewards = rewards - jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=1, keepdims=True)
    count = jnp.sum(valid, axis=1, keepdims=True)
    mean = jnp.sum(jnp.where(valid, rewards, 0.0), 1, keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(valid, rewards - mean, 0.0)


def group_spread(rewards: Float[Array, "B N"]) -> Float[Array, " B"]:
    """Returns the unbiased standard deviation (ddof = 1) of the finite rewards of each group, as in
    the released code; 0 where there are fewer than two."""
    count = jnp.sum(jnp.isfinite(rewards), axis=1)
    return jnp.sqrt(jnp.sum(jnp.square(centred(rewards)), 1) / jnp.maximum(count - 1, 1))


def probability_ratio(
    logprobs: Float[Array, "*n"], old_logprobs: Float[Array, "*n"], limit: float = 20.0
) -> Float[Array, "*n"]:
    """Returns exp(clip(log p - log p_old)): how much likelier a token became since sampling."""
    return jnp.exp(jnp.clip(logprobs - old_logprobs, -limit, limit))


def importance_weights(
    logprobs: Float[Array, "*n"],
    sampled_logprobs: Float[Array, "*n"],
    maximum: float,
    limit: float = 20.0,
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """Returns min(p / q, maximum) per token, without a gradient, and where the maximum binds.

    p is the token's probability in the training pass, q that under the sampler, whose weights or
    rounding differ. For any f, E_q[p / q · f] = E_p[f] over the token, given the tokens before it;
    these still follow q. Truncation bounds the variance, at the price of a bias ("truncated
    importance sampling", Yao et al., 2025).
    """
    ratio = probability_ratio(logprobs, sampled_logprobs, limit)
    ratio = jax.lax.stop_gradient(ratio)
    return jnp.minimum(ratio, maximum), ratio > maximum


def clipped_surrogate(
    logprobs: Float[Array, "*n"],
    old_logprobs: Float[Array, "*n"],
    advantages: Float[Array, "*n"],
    low: float = 0.2,
    high: float = 0.2,
    dual: float = 3.0,
    limit: float = 20.0,
) -> Float[Array, "*n"]:
    """Returns the policy loss per token: PPO's clipped surrogate with the dual clip.

    l = max(-A ρ, -A clip(ρ, 1 - low, 1 + high)); where A < 0, l = min(l, -dual A).
    With old_logprobs = stop_gradient(logprobs), ρ is 1 and the gradient is REINFORCE's.
    """
    ratio = probability_ratio(logprobs, old_logprobs, limit)
    loss = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - low, 1 + high))
    return jnp.where(advantages < 0, jnp.minimum(loss, -dual * advantages), loss)


def clip_binds(
    ratio: Float[Array, "*n"],
    advantages: Float[Array, "*n"],
    low: float = 0.2,
    high: float = 0.2,
    dual: float = 3.0,
) -> Bool[Array, "*n"]:
    """Returns for which tokens `clipped_surrogate` is constant in ρ: they have no gradient.

    Where A > 0, for ρ > 1 + high. Where A < 0, for ρ < 1 - low, and for ρ > dual.
    """
    falls = (advantages < 0) & ((ratio < 1 - low) | (ratio > dual))
    return falls | ((advantages > 0) & (ratio > 1 + high))


def kl_k3(
    logprobs: Float[Array, "*n"],
    reference_logprobs: Float[Array, "*n"],
    limit: float = 20.0,
    maximum: float = 10.0,
) -> Float[Array, "*n"]:
    """Returns the k3 estimate of KL(p, p_ref) per sampled token, in nats: exp(d) - d - 1.

    d = clip(log p_ref - log p, ±limit); the estimate is capped at `maximum`.
    """
    d = jnp.clip(reference_logprobs - logprobs, -limit, limit)
    return jnp.minimum(jnp.exp(d) - d - 1, maximum)


def bradley_terry_loss(
    teacher: Float[Array, " B"], student: Float[Array, "B N"]
) -> Float[Array, "B N"]:
    """Returns -log σ(D(x, y_t) - D(x, y_s)) for each pair, in nats (equation 1 of the paper).

    The teacher's response is paired with each of the N samples of its prompt.
    """
    return jax.nn.softplus(student.astype(jnp.float32) - teacher.astype(jnp.float32)[:, None])


def cross_entropy_loss(
    teacher: Float[Array, " B"], student: Float[Array, "B N"]
) -> Float[Array, "B N"]:
    """Returns -log σ(D(x, y_t)) - log(1 - σ(D(x, y_s))) for each pair: the paper's ablation."""
    teacher, student = teacher.astype(jnp.float32), student.astype(jnp.float32)
    return jax.nn.softplus(-teacher)[:, None] + jax.nn.softplus(student)


def smoothed(
    loss: Float[Array, "B N"],
    teacher: Float[Array, " B"],
    student: Float[Array, "B N"],
    smoothing: float,
) -> Float[Array, "B N"]:
    """Returns either pair loss with its labels smoothed: the teacher's response is the teacher's
    with probability 1 - ε only, in nats.

    L = (1 - ε) L(y_t, y_s) + ε L(y_s, y_t) = L(y_t, y_s) + ε (D(x, y_t) - D(x, y_s)), because
    softplus(z) = z + softplus(-z). Bradley-Terry's loss is then least at a margin of
    log((1 - ε) / ε), where without smoothing it has no least value.
    """
    return loss + smoothing * (teacher.astype(jnp.float32)[:, None] - student.astype(jnp.float32))


RIDGE = 0.01
"""Penalty on the squared slope of `length_slope`: where length tells all pairs apart, the
likelihood has no maximum."""


def length_slope(longer: Float[Array, "*n"], smoothing: float = 0.0) -> Float[Array, ""]:
    """Returns how much length alone says about who wrote a response, in nats per token.

    `longer` is the teacher's length minus the sample's, in tokens. With d = longer / its root mean
    square, the slope c is that of a logistic regression of "is the teacher's" on length alone, with
    labels smoothed by ε as those of `smoothed`:

        c = argmin over c of  mean(softplus(-c d) + ε c d) + RIDGE / 2 c²

    Fitted without ε, c d would pass the margin at which D's loss is least, and the score would have
    to take that back: it would prefer the student's response.

    The discriminator is then trained on the margin plus c d (`bradley_terry_loss` of
    `student - c d`). So its score has to learn only what length does not say, and the reward is
    that score: log p/q less its part that is linear in length.
    """
    longer = longer.astype(jnp.float32)
    scale = jnp.sqrt(jnp.mean(jnp.square(longer)))
    d = longer / jnp.maximum(scale, 1.0)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        # The derivative of the objective grows with c, so its zero can be bracketed.
        low, high = ends
        middle = (low + high) / 2
        rises = RIDGE * middle > jnp.mean(d * (jax.nn.sigmoid(-middle * d) - smoothing))
        return jnp.where(rises, low, middle), jnp.where(rises, middle, high)

    most = jnp.float32(1 / RIDGE)  # |c| <= mean |d| / RIDGE, and mean |d| <= 1
    low, high = jax.lax.fori_loop(0, 40, halve, (-most, most))
    return (low + high) / 2 / jnp.maximum(scale, 1.0)

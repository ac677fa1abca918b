"""The losses and their gradients by hand: one response per row, whole logits, no packing."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gad_jax.models import decoder
from gad_jax.types import Params, Segments
from tests.core.builders import (
    DISCRIMINATOR,
    GENERATOR,
    PROMPTS,
    SAMPLES,
    Texts,
    networks,
    put,
    texts,
)


class Alone(NamedTuple):
    """Every response in a row of its own after its prompt, padded to the longest: no packing."""

    tokens: jax.Array
    positions: jax.Array
    segments: Segments
    targets: jax.Array
    mask: jax.Array
    last: jax.Array


def alone(texts: Texts, which: str) -> Alone:
    """Returns the rows [B·N, T]; "teacher" holds the teacher's response once for each sample."""
    pairs = [
        (prompt, group[0] if which == "teacher" else response)
        for prompt, group in zip(texts.prompts, texts.responses, strict=True)
        for response in group[1:]
    ]
    length = max(
        len(p) + len(r)
        for p, group in zip(texts.prompts, texts.responses, strict=True)
        for r in group
    )
    tokens, own, targets = (np.zeros((len(pairs), length), np.int32) for _ in range(3))
    mask = np.zeros((len(pairs), length), bool)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        tokens[row, :end], own[row, :end] = [*prompt, *response], 1
        targets[row, len(prompt) - 1 : end - 1] = response
        mask[row, len(prompt) - 1 : end - 1] = True
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    last = np.asarray([len(p) + len(r) - 1 for p, r in pairs])
    return jax.tree.map(
        jnp.array, Alone(tokens, positions, Segments(own, own), targets, mask, last)
    )


@jax.jit
def logprobs_by_hand(
    params: Params, x: Alone, temperature: float = 0.8
) -> tuple[jax.Array, jax.Array]:
    """Returns log-probs of the targets and entropies, [B·N T]."""
    logits = decoder.logits(GENERATOR, params, x.tokens, x.positions, x.segments)
    every = jax.nn.log_softmax(logits / temperature)
    picked = jnp.take_along_axis(every, x.targets[..., None], axis=-1)[..., 0]
    return picked, -jnp.sum(jnp.exp(every) * every, axis=-1)


@jax.jit
def scores_by_hand(params: Params, x: Alone) -> jax.Array:
    """Returns the score at the last token of every row."""
    scores = decoder.score(DISCRIMINATOR, params, x.tokens, x.positions, x.segments)
    return jnp.take_along_axis(scores, x.last[:, None], axis=1)[:, 0]


@jax.jit
def reinforce_by_hand(
    params: Params, reference: Params, x: Alone, advantages: jax.Array, kl: float, bonus: float
) -> Params:
    """Returns the gradient of REINFORCE's token-mean loss, with k3 to the reference and an entropy
    bonus."""

    def loss(params: Params) -> jax.Array:
        logprobs, entropy = logprobs_by_hand(params, x)
        other, _ = logprobs_by_hand(reference, x)
        d = other - logprobs
        k3 = jnp.exp(d) - d - 1
        each = -advantages[:, None] * logprobs + kl * jnp.minimum(k3, 10) - bonus * entropy
        return jnp.sum(each * x.mask) / jnp.sum(x.mask)

    return jax.grad(loss)(params)


def live_ratio_by_hand(
    params: Params, x: Alone, advantages: np.ndarray, sampled: np.ndarray, maximum: float = 0.0
) -> tuple[Params, dict[str, float]]:
    """Returns the gradient of the token-mean loss on samples of other weights, and means over the
    tokens; `sampled` are the sampler's log-probs [B·N T].

    A token counts as in REINFORCE, times p / q: not at all where a clip of 0.2 either side, or the
    dual clip at 3, has made the loss flat; with a maximum, times no more than that.
    """
    logprobs = np.asarray(logprobs_by_hand(params, x)[0], np.float64)
    mask, a = np.asarray(x.mask), np.broadcast_to(advantages[:, None], logprobs.shape)
    ratio = np.exp(logprobs - sampled)
    if maximum:
        each, out = np.minimum(ratio, maximum), ratio > maximum
    else:
        out = np.where(a > 0, ratio > 1.2, (a < 0) & ((ratio < 0.8) | (ratio > 3)))
        each = np.where(out, 0, ratio)
    weights = jnp.asarray(np.where(mask, -a * each, 0) / mask.sum(), jnp.float32)
    gradient = jax.grad(lambda params: jnp.sum(weights * logprobs_by_hand(params, x)[0]))(params)
    means = {"ratio": ratio[mask].mean(), "each": each[mask].mean(), "out": out[mask].mean()}
    return gradient, means


@functools.cache
def all_scores_by_hand() -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of teacher (repeated) and samples at the start, [B N] each."""
    params = put(networks()[2])
    return tuple(
        np.asarray(scores_by_hand(params, alone(texts(), which)), np.float64).reshape(
            PROMPTS, SAMPLES
        )
        for which in ("teacher", "samples")
    )


def advantages_by_hand() -> np.ndarray:
    _, rewards = all_scores_by_hand()
    deviation = rewards - rewards.mean(axis=1, keepdims=True)
    return (deviation / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6)).astype(np.float32)


def generator_by_hand(kl: float = 0.0, bonus: float = 0.0) -> Params:
    generator, other, _ = (put(network) for network in networks())
    advantages = jnp.asarray(advantages_by_hand().ravel())
    return reinforce_by_hand(generator, other, alone(texts(), "samples"), advantages, kl, bonus)

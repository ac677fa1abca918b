"""Analytic FLOPs of a pass through a network; a multiply-add counts two.

XLA's own count takes the body of a loop once, whatever the number of iterations, so utilisation is
computed from these. The tests compare them with XLA's count of an unrolled network.
"""

from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np

from gad_jax.models import adapters, decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.types import PackedRows

TRAINING = 3
"""FLOPs of forward and backward pass, in forward passes."""


class Work(NamedTuple):
    """The work of a pass: tokens, attended (query, key) pairs, tokens with logits or a score.

    The pairs are those of all layers together, because layers may have windows.
    """

    tokens: int
    attended: int
    scored: int

    def __mul__(self, factor: Any) -> "Work":
        return Work(*(int(count * factor) for count in self))


def parameters(config: DecoderConfig) -> int:
    """Returns the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(decoder.abstract(config)))


def layer_weights(config: DecoderConfig, experts: float | None = None) -> float:
    """Returns the number of weights in the matmuls of all layers, without embedding and heads.

    Of a mixture, the active ones: those of the experts that one token visits, or of that many
    experts in each layer.
    """
    attention = 2 * (config.heads + config.kv_heads) * config.head_width * config.width
    mlp: float = config.mlp_width
    router = 0
    if mixture := config.experts:
        mlp = mixture.width * (mixture.per_token if experts is None else experts)
        router = mixture.count * config.width
    return float(config.layers * (attention + 3 * config.width * mlp + router))


def adapter_weights(config: DecoderConfig) -> int:
    """Returns the number of weights of all adapters."""
    layers = adapters.abstract(config)[1]["layers"] if config.lora else {}
    return sum(leaf.size for leaf in jax.tree.leaves(layers))


def touched_experts(config: DecoderConfig, tokens: int) -> float:
    """Returns how many experts of a layer at least one of these tokens visits, on average.

    That is E (1 - (1 - k/E)ⁿ), for a router that prefers none. Real ones touch fewer.
    """
    mixture = config.experts
    if mixture is None:
        return 0.0
    return mixture.count * (1.0 - (1.0 - mixture.per_token / mixture.count) ** tokens)


def forward_flops(config: DecoderConfig, work: Work) -> float:
    """Returns the FLOPs of a forward pass.

    That is 2 per active weight and token, those of adapters too, 4·H·C per attended pair, and the
    head's projection of the tokens that have logits or a score.
    """
    projections = 2.0 * (layer_weights(config) + adapter_weights(config)) * work.tokens
    attention = 4.0 * config.heads * config.head_width * work.attended
    head = config.score_heads if config.head == "score" else config.vocabulary
    return projections + attention + 2.0 * config.width * head * work.scored


def training_flops(config: DecoderConfig, work: Work) -> float:
    """Returns the FLOPs of forward and backward pass: three forward passes.

    Frozen kernels have no gradient, so under adapters they count twice. What rematerialisation
    computes again is not counted: utilisation is of useful work.
    """
    whole = TRAINING * forward_flops(config, work)
    if config.lora is None:
        return whole
    head = config.width * config.vocabulary * work.scored if config.head == "vocabulary" else 0
    return whole - 2.0 * (layer_weights(config) * work.tokens + head)


def trained_parameters(config: DecoderConfig) -> int:
    """Returns the number of parameters that have gradients and moments."""
    return sum(leaf.size for leaf in jax.tree.leaves(adapters.abstract(config)[1]))


def packed_work(config: DecoderConfig, rows: PackedRows) -> Work:
    """Returns the work in packed rows, without their padding.

    A token at position p attends to p tokens before it and to itself, but never to more than a
    layer's window.
    """
    own, positions = np.asarray(rows.segments.own), np.asarray(rows.positions)
    seen = positions[own > 0].astype(np.int64) + 1
    windows = Counter(config.kind(layer).window for layer in range(config.layers))
    attended = sum(
        layers * int((np.minimum(seen, window) if window else seen).sum())
        for window, layers in windows.items()
    )
    return Work(int((own > 0).sum()), attended, int(np.asarray(rows.mask).sum()))


def processed_work(config: DecoderConfig, rows: PackedRows) -> Work:
    """Returns the work that devices do on packed rows, padding included.

    That is every position, the lower triangle of each row in every layer (the kernels mask what a
    window hides), and logits everywhere.
    """
    micro, count, length = rows.tokens.shape
    positions = micro * count * length
    return Work(positions, config.layers * positions * (length + 1) // 2, positions)

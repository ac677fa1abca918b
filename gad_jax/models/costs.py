"""What a pass through a network costs by its mathematics: floating-point operations and bytes.

XLA's own count takes the body of a loop once, whatever its length, so utilisation is computed from
these. A multiplication with an addition counts two. The tests compare with XLA's count of an
unrolled network.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.types import PackedRows

TRAINING = 3
"""Forward and backward pass, in forward passes."""


class Work(NamedTuple):
    """How much a pass has to do: tokens, (query, key) pairs that attend, tokens with logits."""

    tokens: int
    attended: int
    scored: int

    def __mul__(self, factor: Any) -> "Work":
        return Work(*(int(count * factor) for count in self))


def parameters(config: DecoderConfig) -> int:
    """Returns the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(decoder.abstract(config)))


def layer_weights(config: DecoderConfig) -> int:
    """Returns the weights in the matrix products of all layers, without embedding and heads."""
    attention = 2 * (config.heads + config.kv_heads) * config.head_width * config.width
    return config.layers * (attention + 3 * config.width * config.mlp_width)


def forward_flops(config: DecoderConfig, work: Work) -> float:
    """Returns the operations of a forward pass: 2N per token, 4·L·H·C per attended pair, and the
    vocabulary projection of the tokens that have one."""
    projections = 2.0 * layer_weights(config) * work.tokens
    attention = 4.0 * config.layers * config.heads * config.head_width * work.attended
    head = 1 if config.head == "score" else config.vocabulary
    return projections + attention + 2.0 * config.width * head * work.scored


def training_flops(config: DecoderConfig, work: Work) -> float:
    """Returns the operations of forward and backward pass: 6N per token and causal attention.

    What rematerialisation computes again is not counted: utilisation is of useful work.
    """
    return TRAINING * forward_flops(config, work)


def packed_work(rows: PackedRows) -> Work:
    """Returns the work in packed rows, without their padding.

    Every token sees those before it in its own sequence: as many as its position says, and itself.
    """
    own, positions = np.asarray(rows.segments.own), np.asarray(rows.positions)
    attended = int((positions[own > 0].astype(np.int64) + 1).sum())
    return Work(int((own > 0).sum()), attended, int(np.asarray(rows.mask).sum()))


def processed_work(rows: PackedRows) -> Work:
    """Returns the work that a device does on packed rows: every position, the lower triangle of
    each row, and logits everywhere."""
    micro, count, length = rows.tokens.shape
    positions = micro * count * length
    return Work(positions, positions * (length + 1) // 2, positions)

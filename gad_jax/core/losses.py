"""The networks on packed rows: the loss and the log-probabilities of the responses' tokens, and the
responses' scores."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Shaped

from gad_jax.distributed import parallel, sharding
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.models.logprobs import logprobs_and_entropy
from gad_jax.types import Metrics, PackedRows, Params

PerToken = tuple[Float[Array, " n"], dict[str, Float[Array, " n"]]]
"""A loss, and other numbers by name."""
TokenLoss = Callable[..., PerToken]
"""(log-probabilities [n], entropies [n], *inputs [n]) → PerToken."""


def response_loss(
    config: DecoderConfig,
    params: Params,
    rows: PackedRows,
    count: Float[Array, ""],
    temperature: float,
    chunk: int,
    token_loss: TokenLoss,
    *inputs: Float[Array, "M T"],
) -> tuple[Float[Array, ""], Metrics]:
    """Returns sums over the response tokens of a micro-batch, divided by `count`: of a loss, and of
    other numbers, through which no gradient flows.

    Both come from `token_loss(log-probabilities, entropies, *inputs)`, [n] each, of the
    distribution softmax(logits / temperature). Logits exist for about `chunk` positions of a data
    shard at a time, and once: the loss of a token depends on no other token, so its gradient with
    respect to the hidden states and the vocabulary projection is taken where its logits are.
    """
    x, _ = decoder.hidden(config, params, rows.tokens, rows.positions, rows.segments)
    head = decoder.head(config, params)
    per_row = parallel.batch_spec(0)

    @jax.custom_vjp
    def total(x: Array, head: Array, *others: Any) -> tuple[Array, Metrics]:
        return forward(x, head, *others)[0]

    def forward(x: Array, head: Array, *others: Any) -> Any:
        kernel = decoder.head_kernel(config, head)
        specs = (per_row, P(), P(), *(per_row for _ in others[1:]))
        shards = parallel.shard_map(local, specs, per_row)(x, kernel, *others)
        sums, for_kernel = jax.tree.map(lambda z: jnp.sum(z, axis=0), shards[:2])
        sums = parallel.psum_over_replicas(sums)
        return sums, (shards[2], sharding.reshard(for_kernel, *decoder.head_axes(config)))

    def local(
        x: Array, kernel: Array, count: Array, targets: Array, mask: Array, *inputs: Array
    ) -> Any:
        wide = kernel.astype(jnp.float32)

        def one(summed: Array, part: Sequence[Array]) -> Any:
            piece, targets, mask, *inputs = part

            def value(piece: Array, wide: Array) -> tuple[Array, Metrics]:
                # Products work in the dtype that the kernel came in, sums of them in float32.
                logits = decoder.project(config, piece, wide.astype(kernel.dtype)) / temperature
                both = logprobs_and_entropy(logits, targets)
                each = token_loss(*both, *inputs)
                return jax.tree.map(lambda z: jnp.sum(jnp.where(mask, z, 0.0)) / count, each)

            gradient = jax.value_and_grad(value, (0, 1), has_aux=True)
            sums, (for_piece, for_kernel) = gradient(piece, wide)
            return summed + for_kernel, (sums, for_piece)

        parts = tuple(_pieces(z, chunk) for z in (x, targets, mask, *inputs))
        for_kernel, (sums, for_x) = jax.lax.scan(one, jnp.zeros_like(wide), parts)
        shard = jax.tree.map(lambda z: jnp.sum(z, keepdims=True), sums), for_kernel[None]
        return *shard, _joined(for_x, x.shape)

    def backward(gradients: tuple[Array, Array], cotangents: tuple[Array, Metrics]) -> Any:
        for_x, for_head = gradients
        scale = cotangents[0]
        scaled = (for_x * scale.astype(for_x.dtype), (for_head * scale).astype(head.dtype))
        return *scaled, *(None for _ in others)

    others = (count, rows.targets, rows.mask, *inputs)
    total.defvjp(forward, backward)
    return total(x, head, *others)


def response_logprobs(
    config: DecoderConfig, params: Params, rows: PackedRows, temperature: float, chunk: int
) -> tuple[Float[Array, "M T"], Float[Array, "M T"]]:
    """Returns the log-probability of each target and the entropy at each position of a micro-batch.

    Both are of softmax(logits / temperature). Logits exist for about `chunk` positions of a data
    shard at a time; a gradient would keep them all (`response_loss` does not).
    """
    x, _ = decoder.hidden(config, params, rows.tokens, rows.positions, rows.segments)
    kernel = decoder.head_kernel(config, decoder.head(config, params))
    per_row = parallel.batch_spec(0)

    def local(x: Array, targets: Array, kernel: Array) -> tuple[Array, Array]:
        def one(part: tuple[Array, Array]) -> tuple[Array, Array]:
            logits = decoder.project(config, part[0], kernel) / temperature
            return logprobs_and_entropy(logits, part[1])

        both = jax.lax.map(one, (_pieces(x, chunk), _pieces(targets, chunk)))
        logprobs, entropy = (_joined(z, targets.shape) for z in both)
        return logprobs, entropy

    specs = (per_row, per_row, P())
    return parallel.shard_map(local, specs, (per_row, per_row))(x, rows.targets, kernel)


def _pieces(x: Shaped[Array, "M T *rest"], chunk: int) -> Shaped[Array, "pieces n *rest"]:
    """Returns x in pieces of about `chunk` positions, the same columns of every row together; the
    last is filled up with zeros."""
    rows, length, *rest = x.shape
    columns = min(max(chunk // rows, 1), length)
    pieces = -(-length // columns)
    x = jnp.pad(x, [(0, 0), (0, pieces * columns - length), *[(0, 0)] * len(rest)])
    x = x.reshape(rows, pieces, columns, *rest).swapaxes(0, 1)
    return x.reshape(pieces, rows * columns, *rest)


def _joined(pieces: Shaped[Array, "pieces n *rest"], shape: Sequence[int]) -> Array:
    """Returns what `_pieces` took apart, in its shape."""
    rows, length, *rest = shape
    x = pieces.reshape(pieces.shape[0], rows, -1, *rest).swapaxes(0, 1)
    return x.reshape(rows, -1, *rest)[:, :length]


def response_scores(config: DecoderConfig, params: Params, rows: PackedRows) -> Float[Array, "G S"]:
    """Returns the score of every response of one micro-batch: that of its last token."""
    scores = decoder.score(config, params, rows.tokens, rows.positions, rows.segments)
    # M × T numbers: gathering them is nothing beside the pass that made them.
    scores = parallel.all_gather_over_replicas(sharding.reshard(scores, None, None))
    out = sharding.spec(None, None)
    return scores.at[rows.ends[..., 0], rows.ends[..., 1]].get(out_sharding=out)

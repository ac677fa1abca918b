"""The networks on packed rows: scores of responses, log-probabilities of their tokens, and sums of
a loss over those tokens.

A vocabulary has far more entries than a hidden state, so logits exist for one chunk of positions
at a time. Losses themselves stand in `losses.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Shaped

from gad_jax.distributed import parallel, sharding
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.models.logprobs import Targets, logprobs_and_entropy, restricted
from gad_jax.types import Metrics, PackedRows, Params

PerToken = tuple[Float[Array, " n"], dict[str, Float[Array, " n"]]]
"""A loss per token, and other numbers per token by name."""


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """The static part of `response_sums`: a loss of each response token from its distribution.

    `function(log-probabilities [n], entropies [n], inputs)` returns `PerToken`; `inputs` is a
    pytree of [n]. The distribution is softmax(logits / temperature).
    """

    config: DecoderConfig
    temperature: float
    chunk: int
    function: Callable[[Array, Array, Any], PerToken]

    @property
    def trains_head(self) -> bool:
        """Whether the vocabulary projection is trained: a network with adapters has a frozen one.

        Its gradient would cost a third of the projection's FLOPs, and a float32 copy.
        """
        return self.config.lora is None


def response_scores(
    config: DecoderConfig, params: Params, rows: PackedRows
) -> Float[Array, "G S *heads"]:
    """Returns the score of every response of one micro-batch: that of its last token."""
    scores = decoder.score(config, params, rows.tokens, rows.positions, rows.segments)
    return _at_ends(scores, rows)


def longer_teachers(rows: PackedRows) -> Float[Array, "G N"]:
    """Returns how many tokens the teacher's response is longer than each sample of its prompt, for
    the pairs of one micro-batch."""
    # Both have the same prompt before them.
    last = _at_ends(rows.positions, rows).astype(jnp.float32)
    return last[:, :1] - last[:, 1:]


def _at_ends(values: Shaped[Array, "M T *rest"], rows: PackedRows) -> Shaped[Array, "G S *rest"]:
    """Returns the value at the last token of every response."""
    # M × T numbers: gathering them costs nothing next to the pass that made them.
    axes = (None,) * values.ndim
    values = parallel.all_gather_over_replicas(sharding.reshard(values, *axes))
    out = sharding.spec(*axes)
    return values.at[rows.ends[..., 0], rows.ends[..., 1]].get(out_sharding=out)


def response_logprobs(
    config: DecoderConfig, params: Params, rows: PackedRows, temperature: float, chunk: int
) -> tuple[Float[Array, "M T"], Float[Array, "M T"]]:
    """Returns the log-probability of each target and the entropy at each position of a micro-batch.

    Both are of softmax(logits / temperature). Logits are materialised for about `chunk` positions
    per data shard at a time; a gradient would keep them all (`response_sums` does not).
    """
    x, _ = decoder.hidden(config, params, rows.tokens, rows.positions, rows.segments)
    return projected_logprobs(config, x, decoder.head(config, params), rows, temperature, chunk)


def projected_logprobs(
    config: DecoderConfig,
    x: Float[Array, "M T D"],
    head: Float[Array, "*head"],
    rows: PackedRows,
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, "M T"], Float[Array, "M T"]]:
    """`response_logprobs` from the hidden states on."""
    kernel = decoder.head_kernel(config, head)
    per_row = parallel.batch_spec(0)

    def in_shard(x: Array, targets: Array, kernel: Array) -> tuple[Array, Array]:
        def one_chunk(part: tuple[Array, Array]) -> tuple[Array, Array]:
            logits = decoder.project(config, part[0], kernel) / temperature
            return logprobs_and_entropy(logits, part[1])

        both = jax.lax.map(one_chunk, (_chunks(x, chunk), _chunks(targets, chunk)))
        logprobs, entropy = (_joined(z, targets.shape) for z in both)
        return logprobs, entropy

    specs = (per_row, per_row, P())
    return parallel.shard_map(in_shard, specs, (per_row, per_row))(x, rows.targets, kernel)


def restricted_logprobs(
    config: DecoderConfig,
    params: Params,
    sampler: Params,
    rows: PackedRows,
    temperature: float,
    chunk: int,
) -> Float[Array, "M T"]:
    """Returns the log-probability of each target among the tokens that `sampler` could draw there.

    `sampler` are the weights that drew the responses, with `rows.thresholds`. Their pass is needed
    again: which tokens those are is known from their logits alone.
    """
    (x, kernel), (y, sampler_kernel) = (
        (
            decoder.hidden(config, each, rows.tokens, rows.positions, rows.segments)[0],
            decoder.head_kernel(config, decoder.head(config, each)),
        )
        for each in (params, sampler)
    )
    per_row = parallel.batch_spec(0)

    def in_shard(x: Array, y: Array, targets: Targets, kernel: Array, other: Array) -> Array:
        def one_chunk(part: Any) -> Array:
            here, there, targets = part
            logits, by = (
                decoder.project(config, *each) / temperature
                for each in ((here, kernel), (there, other))
            )
            return logprobs_and_entropy(restricted(logits, targets, by), targets.tokens)[0]

        parts = jax.tree.map(lambda z: _chunks(z, chunk), (x, y, targets))
        return _joined(jax.lax.map(one_chunk, parts), targets.tokens.shape)

    specs = (per_row, per_row, per_row, P(), P())
    targets = Targets(rows.targets, rows.thresholds)
    return parallel.shard_map(in_shard, specs, per_row)(x, y, targets, kernel, sampler_kernel)


def response_sums(
    loss: TokenLoss, params: Params, rows: PackedRows, count: Float[Array, ""], inputs: Any = None
) -> tuple[Float[Array, ""], Metrics]:
    """Returns sums over the response tokens of a micro-batch, divided by `count`: of the loss, and
    of other numbers, through which no gradient flows.

    `inputs` is a pytree of [M, T]. Logits are materialised once, for about `chunk` positions per
    data shard at a time. The loss of a token depends on no other token, so its gradients with
    respect to the hidden states and the vocabulary projection are taken where its logits are.
    """
    config = loss.config
    x, _ = decoder.hidden(config, params, rows.tokens, rows.positions, rows.segments)
    return projected_sums(loss, x, decoder.head(config, params), rows, count, inputs)


def projected_sums(
    loss: TokenLoss,
    x: Float[Array, "M T D"],
    head: Float[Array, "*head"],
    rows: PackedRows,
    count: Float[Array, ""],
    inputs: Any = None,
) -> tuple[Float[Array, ""], Metrics]:
    """`response_sums` from the hidden states on."""
    targets = Targets(rows.targets, rows.thresholds)
    return _projected_sums(loss, x, head, count, targets, rows.mask, inputs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _projected_sums(
    loss: TokenLoss,
    x: Float[Array, "M T D"],
    head: Float[Array, "*head"],
    count: Float[Array, ""],
    targets: Targets,
    mask: Bool[Array, "M T"],
    inputs: Any,
) -> tuple[Float[Array, ""], Metrics]:
    """`projected_sums` with its own gradient."""
    return _projected_sums_forward(loss, x, head, count, targets, mask, inputs)[0]


def _projected_sums_forward(
    loss: TokenLoss, x: Array, head: Array, count: Array, targets: Any, mask: Array, inputs: Any
) -> tuple[tuple[Array, Metrics], tuple[Array, Array | None, Array]]:
    """Returns the sums, and as residuals their gradients: no logits are kept or computed again."""
    kernel = decoder.head_kernel(loss.config, head)
    per_row = parallel.batch_spec(0)
    per_token = jax.tree.map(lambda _: per_row, inputs)
    specs = (per_row, P(), P(), per_row, per_row, per_token)
    in_shard = parallel.shard_map(partial(_shard_sums, loss), specs, per_row)
    *sums_and_kernel, for_x = in_shard(x, kernel, count, targets, mask, inputs)
    sums, for_kernel = jax.tree.map(lambda z: jnp.sum(z, axis=0), tuple(sums_and_kernel))
    for_head = None
    if loss.trains_head:
        for_head = sharding.reshard(for_kernel, *decoder.head_axes(loss.config))
    return parallel.psum_over_replicas(sums), (for_x, for_head, head)


def _projected_sums_backward(
    loss: TokenLoss,
    residuals: tuple[Array, Array | None, Array],
    cotangents: tuple[Array, Metrics],
) -> tuple[Array, Array | None, None, None, None, None]:
    """Scales the gradients that the forward pass has taken."""
    for_x, for_head, head = residuals
    scale = cotangents[0]
    if for_head is not None:
        for_head = (for_head * scale).astype(head.dtype)
    return for_x * scale.astype(for_x.dtype), for_head, None, None, None, None


_projected_sums.defvjp(_projected_sums_forward, _projected_sums_backward)


def _shard_sums(
    loss: TokenLoss,
    x: Float[Array, "M T D"],
    kernel: Float[Array, "*head"],
    count: Float[Array, ""],
    targets: Targets,
    mask: Bool[Array, "M T"],
    inputs: Any,
) -> tuple[tuple[Array, dict[str, Array]], Array | None, Array]:
    """Returns a data shard's sums and the kernel's gradient (None where it is frozen), with a
    leading axis of one, and the gradient of its hidden states."""
    parts = jax.tree.map(lambda z: _chunks(z, loss.chunk), (x, targets, mask, inputs))
    gradient = jax.value_and_grad(partial(_chunk_sums, loss), has_aux=True)

    def add_chunk(total: Array | None, part: Any) -> tuple[Array | None, Any]:
        hidden, *others = part
        products, pull = jax.vjp(lambda h: decoder.products(loss.config, h, kernel), hidden)
        sums, slopes = gradient(products, count, *others)
        if total is not None:
            total += decoder.kernel_gradient(loss.config, hidden, slopes)
        return total, (sums, *pull(slopes))

    # gradients of all chunks are added in float32
    start = jnp.zeros_like(kernel, dtype=jnp.float32) if loss.trains_head else None
    for_kernel, (sums, for_x) = jax.lax.scan(add_chunk, start, parts)
    sums = jax.tree.map(lambda z: jnp.sum(z, keepdims=True), sums)
    for_kernel = None if for_kernel is None else for_kernel[None]
    return sums, for_kernel, _joined(for_x, x.shape)


def _chunk_sums(
    loss: TokenLoss,
    products: Float[Array, "n V"],
    count: Float[Array, ""],
    targets: Targets,
    mask: Bool[Array, " n"],
    inputs: Any,
) -> tuple[Array, Metrics]:
    """Returns a chunk's sums, from `decoder.products`."""
    logits = decoder.scaled(loss.config, products.astype(jnp.float32)) / loss.temperature
    logits = restricted(logits, targets, jax.lax.stop_gradient(logits))
    logprobs, entropy = logprobs_and_entropy(logits, targets.tokens)
    each = loss.function(logprobs, entropy, inputs)
    return jax.tree.map(lambda z: jnp.sum(jnp.where(mask, z, 0.0)) / count, each)


def _chunks(x: Shaped[Array, "M T *rest"], chunk: int) -> Shaped[Array, "chunks n *rest"]:
    """Returns x in chunks of about `chunk` positions, the same positions of every row together; the
    last is filled up with zeros."""
    rows, length, *rest = x.shape
    positions = min(max(chunk // rows, 1), length)
    chunks = -(-length // positions)
    x = jnp.pad(x, [(0, 0), (0, chunks * positions - length), *[(0, 0)] * len(rest)])
    x = x.reshape(rows, chunks, positions, *rest).swapaxes(0, 1)
    return x.reshape(chunks, rows * positions, *rest)


def _joined(chunks: Shaped[Array, "chunks n *rest"], shape: Sequence[int]) -> Array:
    """The inverse of `_chunks`: returns an array of this shape."""
    rows, length, *rest = shape
    x = chunks.reshape(chunks.shape[0], rows, -1, *rest).swapaxes(0, 1)
    return x.reshape(rows, -1, *rest)[:, :length]

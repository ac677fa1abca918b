"""The networks on packed rows: log-probabilities of the responses' tokens, and their scores."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from gad_jax import objectives, sharding
from gad_jax.models import decoder
from gad_jax.models.decoder import DecoderConfig
from gad_jax.types import Params, Rows


def response_logprobs(
    config: DecoderConfig, params: Params, rows: Rows, temperature: float, chunk: int
) -> tuple[Float[Array, "M T"], Float[Array, "M T"]]:
    """Returns the log-probability of each target and the entropy at each position of a micro-batch.

    Both are of softmax(logits / temperature). Logits exist for about `chunk` positions of a data
    shard at a time, in the backward pass too.
    """
    x, _ = decoder.hidden(config, params, rows.tokens, rows.positions, rows.segments)
    kernel = decoder.head_kernel(config, params)
    per_row = sharding.along(0)

    # In each data shard by itself: else the gradient of the kernel, as large as the vocabulary,
    # is summed over the devices once a chunk. It is summed over chunks and devices in float32,
    # which is what the detour is for: products work in the dtype that the kernel came in.
    def local(x: Array, targets: Array, wide: Array) -> tuple[Array, Array]:
        return _chunked_logprobs(x, targets, wide, kernel.dtype, temperature, chunk)

    specs = (per_row, per_row, P())
    wide = kernel.astype(jnp.float32)
    return sharding.locally(local, specs, (per_row, per_row))(x, rows.targets, wide)


def _chunked_logprobs(
    x: Float[Array, "M T D"],
    targets: Int[Array, "M T"],
    kernel: Float[Array, "D V"],
    dtype: Any,
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, "M T"], Float[Array, "M T"]]:
    rows, length, width = x.shape
    chunk = min(max(chunk // rows, 1), length)
    pieces = -(-length // chunk)

    def split(z: Array) -> Array:
        z = jnp.pad(z, [(0, 0), (0, pieces * chunk - length), *[(0, 0)] * (z.ndim - 2)])
        return z.reshape(rows, pieces, chunk, *z.shape[2:]).swapaxes(0, 1)

    def join(z: Array) -> Array:
        return z.swapaxes(0, 1).reshape(rows, pieces * chunk)[:, :length]

    keep = jax.checkpoint_policies.save_only_these_names(objectives.SAVED)

    @partial(jax.checkpoint, policy=keep)
    def one(x: Array, targets: Array, kernel: Array) -> tuple[Array, Array]:
        narrow = kernel.astype(dtype)
        logits = decoder.project(x.reshape(rows * chunk, width), narrow) / temperature
        both = objectives.logprobs_and_entropy(logits, targets.reshape(rows * chunk))
        logprobs, entropy = (z.reshape(rows, chunk) for z in both)
        return logprobs, entropy

    _, parts = jax.lax.scan(
        lambda _, part: (None, one(*part, kernel)), None, (split(x), split(targets))
    )
    return join(parts[0]), join(parts[1])


def response_scores(config: DecoderConfig, params: Params, rows: Rows) -> Float[Array, "G S"]:
    """Returns the score of every response of one micro-batch: that of its last token."""
    scores = decoder.score(config, params, rows.tokens, rows.positions, rows.segments)
    # M × T numbers: gathering them is nothing beside the pass that made them.
    scores = sharding.reshard(scores, None, None)
    out = sharding.spec(None, None)
    return scores.at[rows.ends[..., 0], rows.ends[..., 1]].get(out_sharding=out)

"""Prefill in pieces of a fixed size: one compiled program for prompts of every length.

A prompt's keys and values grow in a cache that is as long as the longest prompt. A piece (a chunk)
attends to what stands before it in blocks of its own size, so its cost follows the tokens before it
and not the length of the cache. `prefixes.py` decides which chunks run; `live.insert` copies the
finished prompt into a slot.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gad_jax.distributed import devices, parallel, sharding
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.ring import DecodeCopy, PromptCache

UNSEEN = -1e30
"""The logit of a key that a query does not see. It is finite: a block may be all unseen."""


def default_chunk() -> int:
    """Returns the default tokens of a chunk.

    A chunk must be short next to what people notice between two tokens, and large enough to keep
    the matmuls busy.
    """
    return 64 if devices.platform() == "cpu" else 512


@jax.jit(static_argnames=("config", "size"))
def empty(config: DecoderConfig, size: int) -> PromptCache:
    """Returns a cache for one prompt of up to `size` tokens. The mesh has one data shard."""
    assert data_shards(jax.sharding.get_abstract_mesh()) == 1
    dtype, kv_heads, width = jnp.dtype(config.compute_dtype), config.kv_heads, config.head_width
    of_keys = sharding.spec("kv_heads", None, "batch")
    of_values = sharding.spec("kv_heads", "batch", None)
    layers = range(config.layers)
    keys = (jnp.zeros((kv_heads, width, size), dtype, out_sharding=of_keys) for _ in layers)
    values = (jnp.zeros((kv_heads, size, width), dtype, out_sharding=of_values) for _ in layers)
    return PromptCache(tuple(keys), tuple(values))


@jax.jit(static_argnames="config", donate_argnames="cache")
def run(
    config: DecoderConfig,
    weights: DecodeCopy,
    cache: PromptCache,
    tokens: Int[Array, " T"],
    start: Int[Array, ""],
) -> tuple[PromptCache, PromptCache]:
    """Runs the tokens at positions from `start`, a multiple of T, after those in the cache.

    Returns the cache with their keys and values, and theirs alone. The cache must be as long as a
    multiple of T. Tokens after the end of a prompt are padding: nothing before them sees them.
    """

    def local(
        weights: DecodeCopy, cache: PromptCache, tokens: Array, start: Array
    ) -> tuple[PromptCache, PromptCache]:
        positions = start + jnp.arange(len(tokens), dtype=jnp.int32)
        angles = {kind: decoder.angles(config, kind, positions) for kind in config.kinds}
        x = decoder.embed(config, weights.rest, tokens)
        layers = []
        for layer, layer_params in enumerate(weights.layers):
            block = nnx.merge(decoder.block_graph(config.decoding), layer_params)
            kind = config.kind(layer)
            attend = partial(_attend, cache.keys[layer], cache.values[layer], start, kind.window)
            x, collected = block(x, angles[kind], attend)
            layers.append(collected)
        keys, values, new_keys, new_values = zip(*layers, strict=True)
        return PromptCache(keys, values), PromptCache(new_keys, new_values)

    whole, caches = jax.P(), _specs(cache)
    given = (whole, caches, whole, whole)
    return parallel.shard_map(local, given, (caches, caches))(weights, cache, tokens, start)


@jax.jit(donate_argnames="cache")
def load(cache: PromptCache, chunk: PromptCache, start: Int[Array, ""]) -> PromptCache:
    """Returns the cache with a chunk that `run` returned before, at positions from `start`."""

    def local(cache: PromptCache, chunk: PromptCache, start: Array) -> PromptCache:
        keys = zip(cache.keys, chunk.keys, strict=True)
        values = zip(cache.values, chunk.values, strict=True)
        return PromptCache(
            tuple(_written(whole, part, start, 2) for whole, part in keys),
            tuple(_written(whole, part, start, 1) for whole, part in values),
        )

    caches = _specs(cache)
    return parallel.shard_map(local, (caches, caches, jax.P()), caches)(cache, chunk, start)


def _specs(cache: PromptCache) -> Any:
    """Returns how the arrays are split over the data shards, of which there is one."""
    specs = jax.tree.map(lambda _: parallel.batch_spec(1), cache)
    return specs._replace(keys=tuple(parallel.batch_spec(2) for _ in cache.keys))


def _written(whole: Array, part: Array, start: Array, axis: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)


def _attend(
    keys: Float[Array, "K C P"],
    values: Float[Array, "K P C"],
    start: Int[Array, ""],
    window: int,
    query: Float[Array, "T H C"],
    key: Float[Array, "T K C"],
    value: Float[Array, "T K C"],
) -> tuple[Float[Array, "T H C"], tuple[Array, ...]]:
    """Writes a chunk's keys and values, and attends to them and to what stands before them."""
    size, kv_heads, width = key.shape
    group = query.shape[1] // kv_heads
    new_keys, new_values = key.transpose(1, 2, 0), value.transpose(1, 0, 2)
    keys, values = _written(keys, new_keys, start, 2), _written(values, new_values, start, 1)
    split = sharding.spec(None, "kv_heads", None, None)
    q = query.reshape(size, kv_heads, group, width, out_sharding=split)
    q = (q * jnp.asarray(width**-0.5, q.dtype)).transpose(1, 2, 0, 3)
    q = q.reshape(kv_heads, group * size, width)  # the heads that share a key in one matmul
    out = _mixed(q, keys, values, start, size, window).astype(query.dtype)
    out = out.reshape(kv_heads, group, size, width).transpose(2, 0, 1, 3)
    out = out.reshape(query.shape, out_sharding=sharding.spec(None, "heads", None))
    return out, (keys, values, new_keys, new_values)


def _mixed(
    q: Float[Array, "K n C"],
    keys: Float[Array, "K C P"],
    values: Float[Array, "K P C"],
    start: Int[Array, ""],
    size: int,
    window: int,
) -> Float[Array, "K n C"]:
    """Returns the values that the queries of a chunk of `size` tokens from `start` see, mixed.

    The softmax runs over blocks of keys, and each corrects its maximum and sum (online softmax).
    Logits, softmax and sums are float32, as in `ring.py`.
    """
    place = jnp.arange(size, dtype=jnp.int32)
    matmul = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def block(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, mixed = carry
        at = number * size
        logits = matmul("knc,kcs->kns", q, jax.lax.dynamic_slice_in_dim(keys, at, size, 2))
        age = (start + place)[:, None] - (at + place)[None, :]
        seen = (age >= 0) & (age < window) if window else age >= 0
        logits = jnp.where(jnp.tile(seen, (q.shape[1] // size, 1)), logits, UNSEEN)
        new_top = jnp.maximum(top, logits.max(-1, keepdims=True))
        scores, fade = jnp.exp(logits - new_top), jnp.exp(top - new_top)
        total = total * fade + scores.sum(-1, keepdims=True)
        some = jax.lax.dynamic_slice_in_dim(values, at, size, 1)
        mixed = mixed * fade + matmul("kns,ksc->knc", scores.astype(q.dtype), some)
        return new_top, total, mixed

    first = jnp.maximum(start - window + 1, 0) // size if window else jnp.zeros_like(start)
    nothing = jnp.zeros_like(q, jnp.float32)
    carry = (nothing[..., :1] + UNSEEN, nothing[..., :1], nothing)
    _, total, mixed = jax.lax.fori_loop(first, start // size + 1, block, carry)
    return mixed / total

"""Attention over packed rows: who sees whom, and which kernel computes it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gad_jax import sharding
from gad_jax.types import Segments

_BLOCKS = 4
_LANES = 128
"""A splash kernel's blocks are multiples of a TPU's vector width …"""
_LARGEST = 512
"""… and at most so large."""


def visible(segments: Segments) -> Bool[Array, "M T T"]:
    """Returns which key (last axis) each query (middle axis) sees.

    A token sees itself and earlier tokens of its own segment and of its prefix. Padding sees
    itself alone, so that its softmax is defined; nothing sees padding.
    """
    own, prefix = segments.own, segments.prefix
    keys = own[:, None, :]
    same = (keys == own[:, :, None]) | (keys == prefix[:, :, None])
    length = own.shape[1]
    query, key = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
    return (same & (keys > 0) & (key <= query)) | (key == query)


def attend(
    query: Float[Array, "M T H C"],
    key: Float[Array, "M T K C"],
    value: Float[Array, "M T K C"],
    mask: Bool[Array, "M T T"],
) -> Float[Array, "M T H C"]:
    """Returns softmax(query · key / √C) · value where the mask is True, each group of H/K query
    heads sharing a key/value head.

    Flash kernels where there are any: cuDNN's on a GPU in half precision, splash on a TPU.
    Elsewhere matrix products in blocks of queries, which skip the keys that lie after a block.
    """
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    flash = {"gpu": _cudnn if half else _blocked, "tpu": _splash}
    kernel = flash.get(sharding.platform(), _blocked)
    heads = sharding.spec("batch", None, "heads", None)
    if heads is None:
        return kernel(query, key, value, mask)
    # A row and a head are computed where they live; the kernels need not know of the mesh.
    specs = (heads, heads, heads, sharding.spec("batch", None, None))
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(
        query, key, value, mask
    )


def _cudnn(query: Array, key: Array, value: Array, mask: Array) -> Array:
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask[:, None], implementation="cudnn"
    )


def _splash(query: Array, key: Array, value: Array, mask: Array, interpret: bool = False) -> Array:
    """One row after the other: the kernel skips the blocks in which nobody sees anybody, and those
    differ from row to row. `interpret` runs it on a CPU."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, width = query.shape[1], query.shape[3]
    padded = -(-length // _LANES) * _LANES
    block = math.gcd(padded, _LARGEST)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{name}": block for name in names}
    sizes = splash.BlockSizes(**blocks)

    def row(inputs: tuple[Array, Array, Array, Array]) -> Array:
        q, k, v, mask = inputs
        more = padded - length
        heads_first = (jnp.pad(z, [(0, more), (0, 0), (0, 0)]).swapaxes(0, 1) for z in (q, k, v))
        mask = jnp.pad(mask, (0, more)) | jnp.eye(padded, dtype=bool)  # nobody sees nothing
        kernel = splash.make_splash_mha(
            mask[None], block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        # under a transformation the library's own flag is an array, of which it cannot ask
        kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
        mixed: Any = kernel(*heads_first)
        return mixed.swapaxes(0, 1)[:length]

    return jax.lax.map(row, (query * jnp.asarray(width**-0.5, query.dtype), key, value, mask))


def _blocked(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """On two CPU cores 1.3 to 2 times as fast as `jax.nn.dot_product_attention`, forward and
    backward: it skips half of the products, and shared heads enter one product side by side."""
    length = query.shape[1]
    block = -(-length // _BLOCKS)
    parts = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        part = mask[:, start:stop, :stop]
        parts.append(_block(query[:, start:stop], key[:, :stop], value[:, :stop], part))
    return jnp.concatenate(parts, axis=1)


def _block(query: Array, key: Array, value: Array, mask: Array) -> Array:
    rows, length, heads, width = query.shape
    kv_heads = key.shape[2]
    shared = heads // kv_heads
    query = query * jnp.asarray(width**-0.5, query.dtype)
    query = query.reshape(rows, length, kv_heads, shared, width).transpose(0, 2, 3, 1, 4)
    query = query.reshape(rows, kv_heads, shared * length, width)
    logits = jnp.einsum("mkqc,mskc->mkqs", query, key, preferred_element_type=jnp.float32)
    logits = logits.reshape(rows, kv_heads, shared, length, key.shape[1])
    logits = jnp.where(mask[:, None, None], logits, -1e30)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1)
    weights = weights.astype(value.dtype).reshape(rows, kv_heads, shared * length, key.shape[1])
    mixed = jnp.einsum("mkqs,mskc->mkqc", weights, value, preferred_element_type=jnp.float32)
    mixed = mixed.reshape(rows, kv_heads, shared, length, width) / total[..., None]
    return mixed.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, width).astype(value.dtype)

"""Attention over packed rows: which token sees which, and which kernel computes it.

Attention over a KV cache, one token at a time, is in `rollout/ring.py`.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Shaped

from gad_jax.distributed import devices, sharding, trial
from gad_jax.types import Segments

SAVED = "attention"
"""What a `jax.checkpoint` policy should save where it saves matmuls, by name.

That is the output, and one number per query and head: with both, the backward pass needs no second
forward pass.
"""

_CUDNN = "dot_product_attention_fwd"


def saved(primitive: Any, *_: Any, **__: Any) -> bool:
    """A `jax.checkpoint` policy: what cuDNN's kernel returns.

    It returns both, but of its normalisers only jax knows, so that they cannot have a name.
    """
    return primitive.name.startswith(_CUDNN)


_BLOCKS = 4
_LANES = 128
"""A splash kernel's blocks are multiples of a TPU's vector width …"""
_LARGEST = 512
"""… and at most so large."""


def visible(
    segments: Segments, positions: Int[Array, "M T"], window: int = 0
) -> Bool[Array, "M T T"]:
    """Returns which key (last axis) each query (middle axis) sees.

    A token sees itself and earlier tokens of its own segment and of its prefix. With a window,
    those are the `window` - 1 positions before it. Padding sees itself alone, so that its softmax
    is defined; nothing sees padding.
    """
    own, prefix = segments.own, segments.prefix
    keys = own[:, None, :]
    same = (keys == own[:, :, None]) | (keys == prefix[:, :, None])
    length = own.shape[1]
    query, key = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
    seen = same & (keys > 0) & (key <= query)
    if window:  # in positions and not in places of the row: a prompt's responses follow each other
        seen &= positions[:, :, None] - positions[:, None, :] < window
    return seen | (key == query)


def attend(
    query: Float[Array, "M T H C"],
    key: Float[Array, "M T K C"],
    value: Float[Array, "M T K C"],
    mask: Bool[Array, "M T T"],
) -> Float[Array, "M T H C"]:
    """Returns softmax(query · key / √C) · value where the mask is True.

    Each key/value head serves a group of H/K query heads. A GPU in half precision uses cuDNN's
    flash kernel, a TPU splash attention. Everything else uses matmuls in blocks of queries, which
    skip the keys that come after a block.
    """
    platform, half = devices.platform(), query.dtype in (jnp.bfloat16, jnp.float16)
    kernel = _blocked
    if platform == "gpu" and half:
        kernel = partial(_cudnn, causal=_takes(query, key))
    elif platform == "tpu":
        kernel = _splash
    heads = sharding.spec("batch", None, "heads", None)
    if heads is None:
        return kernel(query, key, value, mask)
    # Each device computes its own rows and heads, so the kernels need not know of the mesh.
    specs = (heads, heads, heads, sharding.spec("batch", None, None))
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(
        query, key, value, mask
    )


def _cudnn(query: Array, key: Array, value: Array, mask: Array, causal: bool = True) -> Array:
    # No token sees a later place of its row. The mask says so too, but the kernel reads a mask
    # block by block; told that it is causal, it skips the half above the diagonal.
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask[:, None], is_causal=causal, implementation="cudnn"
    )


def _takes(query: Float[Array, "M T H C"], key: Float[Array, "M T K C"]) -> bool:
    """Returns whether cuDNN takes a causal kernel with a mask of these shapes, on this card."""
    _, length, heads, width = query.shape
    dtype = query.dtype.name
    keys = ((1, length, key.shape[2], width), dtype)
    mask = ((1, length, length), "bool")
    return trial.runs(_gradient, ((1, length, heads, width), dtype), keys, keys, mask)


def _gradient(query: Array, key: Array, value: Array, mask: Array) -> Any:
    def total(query: Array, key: Array, value: Array) -> Array:
        return jnp.sum(_cudnn(query, key, value, mask).astype(jnp.float32))

    return jax.grad(total, (0, 1, 2))(query, key, value)


def _splash(query: Array, key: Array, value: Array, mask: Array, interpret: bool = False) -> Array:
    """One row after the other: the kernel skips blocks without a visible key, and those differ
    from row to row. `interpret` runs it on a CPU, for tests."""
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
        mask = jnp.pad(mask, (0, more)) | jnp.eye(padded, dtype=bool)  # no softmax over nothing
        kernel = splash.make_splash_mha(
            mask[None], block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        # Under a transformation the library's own flag is a traced array, and its `if` fails.
        kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
        mixed: Any = kernel(*heads_first)
        return mixed.swapaxes(0, 1)[:length]

    return jax.lax.map(row, (query * jnp.asarray(width**-0.5, query.dtype), key, value, mask))


@jax.custom_vjp
def _blocked(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """On two CPU cores about twice as fast as `jax.nn.dot_product_attention`, in both directions.

    It skips half of the matmuls, the heads that share a key enter one matmul together, and the
    backward pass reuses the normalizers (FlashAttention, arXiv:2205.14135, appendix B.4).
    """
    return _blocked_forward(query, key, value, mask)[0]


def _blocked_forward(query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, Any]:
    parts, normalizers = [], []
    for block in _blocks(query, key, value, mask):
        logits = _logits(block)
        top = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = weights.sum(axis=-1, keepdims=True)
        mixed = _matmul("mkqs,mskc->mkqc", weights.astype(value.dtype), block.value) / total
        parts.append(_apart(mixed, query.shape[2]).astype(value.dtype))
        normalizers.append(checkpoint_name(top + jnp.log(total), SAVED))
    output = checkpoint_name(jnp.concatenate(parts, axis=1), SAVED)
    return output, (query, key, value, mask, output, normalizers)


def _blocked_backward(residuals: Any, cotangent: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, mask, output, normalizers = residuals
    heads, kv_heads = query.shape[2], key.shape[2]
    # The gradient of softmax is w (d - Σ w d), and Σ w d equals cotangent · output.
    means = jnp.sum(cotangent.astype(jnp.float32) * output, axis=-1, keepdims=True)
    for_query = []
    for_key, for_value = (jnp.zeros(x.shape, jnp.float32) for x in (key, value))
    blocks = _blocks(query, key, value, mask)
    others = zip(blocks, _cut(cotangent), _cut(means), normalizers, strict=True)
    for block, part, mean, normalizer in others:
        stop = block.key.shape[1]
        given = _together(part, kv_heads)
        weights = jnp.exp(_logits(block) - normalizer)
        slopes = _matmul("mkqc,mskc->mkqs", given, block.value) - _together(mean, kv_heads)
        slopes = (weights * slopes).astype(value.dtype)
        for_query.append(_apart(_matmul("mkqs,mskc->mkqc", slopes, block.key), heads))
        rest = [(0, 0), (0, key.shape[1] - stop), (0, 0), (0, 0)]
        for_key += jnp.pad(_matmul("mkqs,mkqc->mskc", slopes, block.query), rest)
        weights = weights.astype(value.dtype)
        for_value += jnp.pad(_matmul("mkqs,mkqc->mskc", weights, given), rest)
    scale = query.shape[3] ** -0.5
    gradient = (scale * jnp.concatenate(for_query, axis=1)).astype(query.dtype)
    return gradient, for_key.astype(key.dtype), for_value.astype(value.dtype), None


_blocked.defvjp(_blocked_forward, _blocked_backward)


class _Block(NamedTuple):
    """Some queries and the keys up to the last of them."""

    query: Float[Array, "M K n C"]
    """Divided by √C; n counts the queries of all heads that share a key's."""
    key: Float[Array, "M s K C"]
    value: Float[Array, "M s K C"]
    mask: Bool[Array, "M q s"]


def _cut(x: Shaped[Array, "M T *rest"]) -> list[Shaped[Array, "M q *rest"]]:
    """Returns x in blocks of tokens."""
    size = -(-x.shape[1] // _BLOCKS)
    return [x[:, start : start + size] for start in range(0, x.shape[1], size)]


def _blocks(query: Array, key: Array, value: Array, mask: Array) -> list[_Block]:
    scaled = query * jnp.asarray(query.shape[3] ** -0.5, query.dtype)
    kv_heads = key.shape[2]
    blocks, stop = [], 0
    for part, seen in zip(_cut(scaled), _cut(mask), strict=True):
        stop += part.shape[1]
        blocks.append(
            _Block(_together(part, kv_heads), key[:, :stop], value[:, :stop], seen[..., :stop])
        )
    return blocks


def _together(x: Float[Array, "M q H C"], kv_heads: int) -> Float[Array, "M K n C"]:
    """Returns the queries of all heads that share a key head, one head after the other."""
    rows, length, heads, width = x.shape
    shared = heads // kv_heads
    x = x.reshape(rows, length, kv_heads, shared, width).transpose(0, 2, 3, 1, 4)
    return x.reshape(rows, kv_heads, shared * length, width)


def _apart(x: Float[Array, "M K n C"], heads: int) -> Float[Array, "M q H C"]:
    """Returns the heads apart again: the inverse of `_together`."""
    rows, kv_heads, together, width = x.shape
    shared = heads // kv_heads
    x = x.reshape(rows, kv_heads, shared, together // shared, width).transpose(0, 3, 1, 2, 4)
    return x.reshape(rows, together // shared, heads, width)


def _logits(block: _Block) -> Float[Array, "M K n s"]:
    logits = _matmul("mkqc,mskc->mkqs", block.query, block.key)
    by_head = logits.reshape(*logits.shape[:2], -1, *block.mask.shape[1:])
    return jnp.where(block.mask[:, None, None], by_head, -1e30).reshape(logits.shape)


def _matmul(subscripts: str, x: Array, y: Array) -> Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)

"""Attention of one query per slot to its KV cache, and the order of the cache's axes.

How keys get into a cache is in `ring.py`. Attention over packed rows is in `models/attention.py`.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gad_jax.distributed import devices, mesh, parallel, sharding, trial

Axis = Literal["slot", "kv_head", "width", "position"]


class Layout(NamedTuple):
    """The order of the axes of one layer's cached keys and values."""

    keys: tuple[Axis, ...]
    values: tuple[Axis, ...]


PROMPT_LAYOUT = Layout(
    keys=("kv_head", "width", "position"), values=("kv_head", "position", "width")
)
"""Of a `ring.PromptCache`."""

# Each is the operand order of its matmul, so that the matmul reads the cache without a copy.
CPU_LAYOUT = Layout(("slot", *PROMPT_LAYOUT.keys), ("slot", *PROMPT_LAYOUT.values))
# cuDNN takes a slot's heads as a batch, so that nothing is transposed for it.
_HEAD_FIRST: tuple[Axis, ...] = ("slot", "kv_head", "position", "width")
GPU_LAYOUT = Layout(_HEAD_FIRST, _HEAD_FIRST)
# A TPU's compiler wants the numbers of one position in one piece. Of a cache in another order it
# keeps a second copy, which doubles the largest item in the memory of a decode loop.
_POSITION_FIRST: tuple[Axis, ...] = ("slot", "position", "kv_head", "width")
TPU_LAYOUT = Layout(_POSITION_FIRST, _POSITION_FIRST)

_WIDEST = 128
"""The widest head that cuDNN takes on every card."""
_ALIGNED = 8
"""cuDNN reads rows of 16 bytes: the numbers of a head, and the mask's positions."""


def ring_layout() -> Layout:
    """Returns the order of the axes of a `RingCache` on the platform that is compiled for."""
    return {"gpu": GPU_LAYOUT, "tpu": TPU_LAYOUT}.get(devices.platform(), CPU_LAYOUT)


def visible(
    written: Int[Array, ""], context: Int[Array, " S"], positions: int
) -> Bool[Array, "S positions"]:
    """Returns which positions of a ring hold a slot's `context` newest tokens.

    `written` counts the positions written before the newest.
    """
    return (written - jnp.arange(positions)) % positions < context[:, None]


def attend(
    query: Float[Array, "S H C"],
    keys: Float[Array, "S _ _ _"],
    values: Float[Array, "S _ _ _"],
    seen: Bool[Array, "S positions"],
) -> Float[Array, "S H C"]:
    """Returns softmax(query · key / √C) · value over the positions that are seen.

    The cache is in the order of `ring_layout`. In half precision a GPU uses cuDNN's flash kernel
    where it takes the shapes: one kernel in place of four, and no logits in memory.
    """
    if devices.platform() == "gpu" and _takes(query, keys):
        return flash(query, keys, values, seen)
    return matmuls(query, keys, values, seen, ring_layout())


def _takes(query: Float[Array, "S H C"], keys: Float[Array, "S K P C"]) -> bool:
    """Returns whether cuDNN takes queries and caches of these shapes, on this card."""
    _, kv_heads, positions, width = keys.shape
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if not half or width % _ALIGNED or positions % _ALIGNED or width > _WIDEST:
        return False
    queries = 2, query.shape[1] // kv_heads
    cache, dtype = ((2, positions, 1, width), query.dtype.name), query.dtype.name
    mask = ((2, 1, queries[1], positions), "bool")
    return trial.runs(_library, ((*queries, 1, width), dtype), cache, cache, mask)


def _library(
    query: Array, keys: Array, values: Array, mask: Array, implementation: Any = "cudnn"
) -> Array:
    attention = jax.nn.dot_product_attention
    return attention(query, keys, values, mask=mask, implementation=implementation)


def flash(
    query: Float[Array, "S H C"],
    keys: Float[Array, "S K P C"],
    values: Float[Array, "S K P C"],
    seen: Bool[Array, "S P"],
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "S H C"]:
    """`attend` for caches in `GPU_LAYOUT`, by `jax.nn.dot_product_attention`.

    Every key/value head of a slot is a sequence of its own there, and the heads of the query that
    share it are its queries. So each key is read once, where a kernel that works by query heads
    reads it for each of them.
    """

    def local(query: Array, keys: Array, values: Array, seen: Array) -> Array:
        slots, kv_heads, positions, width = keys.shape
        group = query.shape[1] // kv_heads
        rows = slots * kv_heads
        k, v = (cache.reshape(rows, positions, 1, width) for cache in (keys, values))
        mask = jnp.broadcast_to(seen[:, None, None], (slots, kv_heads, group, positions))
        mask = mask.reshape(rows, 1, group, positions)
        mixed = _library(query.reshape(rows, group, 1, width), k, v, mask, implementation)
        return mixed.reshape(query.shape)

    heads, whole = sharding.spec(None, "heads", None), sharding.spec(None, None)
    caches = sharding.spec(None, "kv_heads", None, None)
    # Each device computes its own heads, so the kernel need not know of the mesh.
    split = parallel.shard_map(local, (heads, caches, caches, whole), heads, mesh.AXIS_NAMES)
    return split(query, keys, values, seen)


def matmuls(
    query: Float[Array, "S H C"],
    keys: Float[Array, "S _ _ _"],
    values: Float[Array, "S _ _ _"],
    seen: Bool[Array, "S positions"],
    layout: Layout,
) -> Float[Array, "S H C"]:
    """`attend` for caches in any order of axes.

    Logits, softmax and sums are float32; queries, weights and caches are in the compute dtype.
    """
    slots, heads, width = query.shape
    kv_heads = keys.shape[layout.keys.index("kv_head")]
    shape = (slots, kv_heads, heads // kv_heads, width)
    q = query.reshape(shape, out_sharding=sharding.spec(None, "kv_heads", None, None))
    q = q * jnp.asarray(width**-0.5, q.dtype)
    of_width = ("slot", "kv_head", "group", "width")
    of_position = ("slot", "kv_head", "group", "position")
    matmul = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = matmul(q, of_width, keys, layout.keys, of_position)
    scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    scores = jnp.exp(scores - scores.max(-1, keepdims=True))
    mixed = matmul(scores.astype(q.dtype), of_position, values, layout.values, of_width)
    # Divided after the matmul: one division per output and not per cached position.
    out = (mixed / scores.sum(-1, keepdims=True)).astype(q.dtype)
    return out.reshape(query.shape, out_sharding=sharding.spec(None, "heads", None))

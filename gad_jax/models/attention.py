"""Attention over packed rows: who sees whom, and which kernel computes it. The choice is made here."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gad_jax import sharding
from gad_jax.types import Segments


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
    heads sharing a key/value head. cuDNN's flash kernel on GPU in half precision, else XLA's."""
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if jax.default_backend() != "gpu" or not half:
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])

    def kernel(q: Array, k: Array, v: Array, m: Array) -> Array:
        return jax.nn.dot_product_attention(q, k, v, mask=m[:, None], implementation="cudnn")

    heads = sharding.spec("batch", None, "heads", None)
    if heads is None:
        return kernel(query, key, value, mask)
    rows = sharding.spec("batch", None, None)
    specs = (heads, heads, heads, rows)
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(
        query, key, value, mask
    )

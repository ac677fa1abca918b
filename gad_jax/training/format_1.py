"""The digests of checkpoints of format 1, so that they can still be verified.

They are a checksum of this project's own, which missed some pairs of flipped bits. Format 2 has a
standard hash (`digest.py`).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from gad_jax.training.digest import plain_leaves


def _words(x: Array) -> Array:
    """Returns the bits of x as uint32, one word per element."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    assert unsigned.itemsize <= 4, f"a leaf of {x.dtype} has no digest"
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


@jax.jit
def leaf_digest(x: Array) -> UInt32[Array, ""]:
    """Returns a sum of all elements, each mixed with its index; independent of the sharding."""
    index = jnp.uint32(0)
    for axis in range(x.ndim):
        stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    mixed = (_words(x) ^ (index * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * (2 * index + 1)
    return jnp.sum(mixed, dtype=jnp.uint32)


def digests(state: Any) -> dict[str, int]:
    """Returns the digest of every leaf by path."""
    leaves = plain_leaves(state).items()
    return {name: int(jax.device_get(leaf_digest(leaf))) for name, leaf in leaves}

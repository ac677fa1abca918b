"""The leaves of a pytree by path, their types, and checksums of what they hold."""

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32


class DamagedRecord(Exception):
    """A record that has changed since it was written."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves by path, as 'generator_optimizer/0/mu/layers/query/kernel'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(x: Array) -> Array:
    """Returns the bits of x as uint32, one word per element."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    assert unsigned.itemsize <= 4, f"a leaf of {x.dtype} has no digest"
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


@jax.jit
def leaf_digest(x: Array) -> UInt32[Array, ""]:
    """Returns a checksum of x that depends on every bit and its place, not on the sharding.

    Each element is mixed with its index by invertible steps, so one changed element always changes
    the sum. Sums of uint32 are exact in any order. It is no defence against an attacker.
    """
    index = jnp.uint32(0)
    for axis in range(x.ndim):
        stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    mixed = (_words(x) ^ (index * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * (2 * index + 1)
    return jnp.sum(mixed, dtype=jnp.uint32)


def digests(state: Any) -> dict[str, int]:
    """Returns the digest of every leaf by path: equal states have equal digests on any devices.

    One leaf at a time: on a CPU, XLA writes the terms of a sum to memory before it adds them, so
    this needs the memory of the largest leaf and not that of the state.
    """
    leaves = plain_leaves(state).items()
    return {name: int(jax.device_get(leaf_digest(leaf))) for name, leaf in leaves}


def plain_leaves(state: Any) -> dict[str, Array]:
    """Returns the named leaves with random keys as their uint32 words, which is what is stored."""
    return {
        name: jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for name, leaf in named_leaves(state).items()
    }


def layout(tree: Any) -> dict[str, str]:
    """Returns dtype and shape of every leaf by path, as 'float32[64,128]'."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in named_leaves(tree).items()
    }


def stored_shape(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns the shape in which a leaf is stored: that of its words, for a random key."""
    if not _is_key(leaf):
        return leaf
    words = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=leaf.sharding)


def typed_leaf(words: Array, leaf: jax.ShapeDtypeStruct) -> Array:
    """Returns what was stored as `words` as the array that `leaf` describes."""
    return jax.random.wrap_key_data(words, dtype=leaf.dtype) if _is_key(leaf) else words


def layout_difference(saved: dict[str, str], expected: dict[str, str], subset: bool) -> str:
    """Returns the first leaf on which two layouts disagree, in words; empty if they agree.

    With `subset`, leaves that only `saved` has are no difference.
    """
    names = expected if subset else {**expected, **saved}
    wrong = [name for name in names if saved.get(name) != expected.get(name)]
    if not wrong:
        return ""
    name, *others = wrong
    more = f" (and {len(others)} more leaves differ)" if others else ""
    there, here = saved.get(name, "absent"), expected.get(name, "absent")
    return f"{name} is {there} there and {here} here{more}"


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record, as JSON gives it back, with a checksum of itself."""
    text = json.dumps(record, sort_keys=True)
    return {**json.loads(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def unsealed(text: bytes) -> dict[str, Any]:
    """Returns a record without its checksum. Raises DamagedRecord when that does not match."""
    try:
        stored = json.loads(text)
        contents = {name: value for name, value in stored.items() if name != "sha256"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedRecord(f"the record is not JSON: {error}") from error
    if sealed(contents) != stored:
        raise DamagedRecord("the record does not match its checksum")
    return contents

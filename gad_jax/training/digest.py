"""The leaves of a pytree by path, their types, and checksums of what they hold."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jaxtyping import Array

from gad_jax.distributed import devices

_FETCHED_AT_ONCE = 2**28
"""Bytes of a leaf that are fetched whole, which bounds the host memory that a digest needs."""


class DamagedRecord(Exception):
    """A record that has changed since it was written."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves by path, as 'generator_optimizer/0/mu/layers/query/kernel'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def digests(state: Any) -> dict[str, str]:
    """Returns XXH3 (128 bits) of every leaf's type, shape and bytes, in C order, by path.

    Equal states have equal digests on any devices. Every process fetches every leaf: what another
    one holds comes over the network. Large leaves are fetched in parts.
    """
    return {name: _digest(leaf) for name, leaf in plain_leaves(state).items()}


def _digest(leaf: Array) -> str:
    hasher = xxhash.xxh3_128(f"{leaf.dtype}{leaf.shape}".encode())
    parts = leaf if leaf.ndim > 1 and leaf.nbytes > _FETCHED_AT_ONCE else [leaf]
    for part in parts:
        whole = np.ascontiguousarray(devices.fetch(part))
        hasher.update(whole.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def of_host(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns the same of arrays on the host."""
    found = {}
    for name, array in arrays.items():
        hasher = xxhash.xxh3_128(f"{array.dtype}{array.shape}".encode())
        hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        found[name] = hasher.hexdigest()
    return found


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

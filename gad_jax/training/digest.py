"""The leaves of a pytree by path, their types, and checksums of what they hold."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jaxtyping import Array

from gad_jax.distributed import devices, processes

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
    large = leaf.ndim > 1 and leaf.nbytes > _FETCHED_AT_ONCE
    parts = leaf if large and not devices.is_hosted(leaf) else [leaf]
    return _of_blocks(leaf.dtype, leaf.shape, map(devices.fetch, parts))


def _of_blocks(dtype: np.dtype, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> str:
    """Returns the digest of an array that is given in blocks, one after the other."""
    hasher = xxhash.xxh3_128(f"{dtype}{shape}".encode())
    for block in blocks:
        hasher.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


class _Held(NamedTuple):
    """What this process's devices hold of an array, on the host: parts by their first place."""

    dtype: np.dtype
    shape: tuple[int, ...]
    parts: dict[tuple[int, ...], np.ndarray]


def later(leaves: Mapping[str, Array]) -> Callable[[], dict[str, str]]:
    """Returns the function that computes the digests of named leaves: to be called once, in any
    thread, and also after a step has been given their memory.

    The bytes are fetched now. On a CPU that copies nothing: XLA copies an array that numpy still
    shows before it gives the memory to a program. All processes make this call, and the first one
    gets digests.
    """
    digests: dict[str, str] = {}
    held: dict[str, _Held] = {}
    for name, leaf in leaves.items():
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            digests[name] = _digest(leaf)  # from all processes, which only main threads may ask
        elif processes.is_first():
            for part in _distinct(leaf).values():
                part.copy_to_host_async()
            held[name] = _Held(leaf.dtype, leaf.shape, {})
    for name, of_leaf in held.items():
        of_leaf.parts.update((at, np.asarray(x)) for at, x in _distinct(leaves[name]).items())

    def compute() -> dict[str, str]:
        while held:  # each is let go as soon as it is done
            name, of_leaf = held.popitem()
            digests[name] = _digest_of_parts(of_leaf)
        return digests

    return compute


def _distinct(leaf: Array) -> dict[tuple[int, ...], Array]:
    """Returns the parts of an array by their first place, one of those that are replicas."""
    return {tuple(s.start or 0 for s in x.index): x.data for x in leaf.addressable_shards}


def _digest_of_parts(held: _Held) -> str:
    blocks = held.parts.values() if len(held.parts) == 1 else _blocks(held)
    return _of_blocks(held.dtype, held.shape, blocks)


def _blocks(held: _Held) -> Iterator[np.ndarray]:
    """Yields some rows of an array after others, put together from its parts."""
    rows = held.shape[0]
    size = held.dtype.itemsize * math.prod(held.shape)
    most = max(rows * _FETCHED_AT_ONCE // size, 1)
    for first in range(0, rows, most):
        block = np.empty((min(most, rows - first), *held.shape[1:]), held.dtype)
        for place, part in held.parts.items():
            low, high = max(place[0], first), min(place[0] + len(part), first + len(block))
            if low < high:
                others = zip(place[1:], part.shape[1:], strict=True)
                where = slice(low - first, high - first), *(slice(x, x + n) for x, n in others)
                block[where] = part[low - place[0] : high - place[0]]
        yield block


def of_host(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns the same of arrays on the host."""
    return {name: _of_blocks(array.dtype, array.shape, [array]) for name, array in arrays.items()}


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

"""The checksum of an array: every bit counts, and its place, its type and its shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.training import digest, format_1
from tests.training.checkpoint_states import make_mesh, make_params


def of(x: object) -> str:
    return digest.digests({"x": jnp.asarray(x)})["x"]


def test_a_digest_sees_every_bit_and_its_place() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, size=(6, 5), dtype=np.uint32)
    seen = {of(words)}
    for place in [(0, 0), (3, 2), (5, 4)]:
        for bit in range(32):
            flipped = words.copy()
            flipped[place] ^= np.uint32(1 << bit)
            seen.add(of(flipped))
    assert len(seen) == 1 + 3 * 32
    swapped = words[[1, 0, 2, 3, 4, 5]]
    signs = np.where(np.arange(30).reshape(6, 5) % 2, words, words ^ np.uint32(1 << 31))
    others = (swapped, signs, words.T.copy(), np.zeros_like(words), words.ravel(), words.view("f4"))
    for other in others:
        assert of(other) not in seen
    assert of(jnp.zeros((6, 5))) != of(-jnp.zeros((6, 5)))


def test_two_flipped_signs_are_seen_wherever_they_are() -> None:
    # the checksum of format 1 misses half of these pairs
    words = np.zeros(2**16, np.uint32)
    digests, others = set(), set()
    for place in range(0, 2**15, 2**11):
        flipped = words.copy()
        flipped[[place, place + 2**15]] ^= np.uint32(1 << 31)
        digests.add(of(flipped))
        others.add(int(format_1.leaf_digest(jnp.asarray(flipped))))
    assert of(words) not in digests
    assert len(digests) == 16
    assert int(format_1.leaf_digest(jnp.asarray(words))) in others


def test_a_digest_does_not_depend_on_the_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = digest.digests(make_params(make_mesh(1, 1), 0))
    assert digest.digests(make_params(make_mesh(4, 2), 0)) == alone
    monkeypatch.setattr(digest, "_FETCHED_AT_ONCE", 64)  # in parts
    assert digest.digests(make_params(make_mesh(2, 2), 0)) == alone
    params = make_params(make_mesh(4, 2), 0)
    late = digest.later(digest.plain_leaves(params))
    gone = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0, x), donate_argnums=0)(params)
    assert not any(x.any() for x in jax.tree.leaves(gone))
    assert late() == alone
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params(make_mesh(2, 2), 0))
    assert set(digest.digests(half).values()).isdisjoint(alone.values())

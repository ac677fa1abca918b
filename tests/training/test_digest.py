"""The checksum of an array: every bit counts, and its place."""

import jax.numpy as jnp
import numpy as np

from gad_jax.training import digest


def test_digest_sees_every_bit_and_its_place() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, size=(6, 5), dtype=np.uint32)
    seen = {int(digest.leaf_digest(jnp.asarray(words)))}
    for place in [(0, 0), (3, 2), (5, 4)]:
        for bit in range(32):
            flipped = words.copy()
            flipped[place] ^= np.uint32(1 << bit)
            seen.add(int(digest.leaf_digest(jnp.asarray(flipped))))
    assert len(seen) == 1 + 3 * 32
    swapped = words[[1, 0, 2, 3, 4, 5]]
    signs = np.where(np.arange(30).reshape(6, 5) % 2, words, words ^ np.uint32(1 << 31))
    for other in (swapped, signs, words.T.copy(), np.zeros_like(words)):
        assert int(digest.leaf_digest(jnp.asarray(other))) not in seen
    zeros = int(digest.leaf_digest(jnp.zeros((6, 5)))), int(digest.leaf_digest(-jnp.zeros((6, 5))))
    assert zeros[0] != zeros[1]

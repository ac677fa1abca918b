"""Near-duplicate texts, and texts that share long runs of words, found from hashes alone.

A text is represented by the hashes of its shingles, which are runs of `size` words. MinHash (Broder
1997) keeps the minimum of each of several permutations of that set. The probability that two sets
have the same minimum is their Jaccard similarity. Texts with an equal band, a group of minima, are
candidates.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt32, UInt64

_WORD = re.compile(r"\w+")
_SHINGLE = 5
# A pair that shares 80 % of its shingles has an equal band with probability
# 1 − (1 − 0.8⁴)¹⁶ = 0.9998.
_BANDS, _ROWS = 16, 4
_SIMILAR = 0.8
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, as in Fibonacci hashing
# Multiplication by an odd number is a permutation of the 64-bit integers.
_FACTORS = np.random.default_rng(0).integers(1, 2**63, _BANDS * _ROWS, np.uint64) * np.uint64(
    2
) + np.uint64(1)


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation."""
    return _WORD.findall(text.casefold())


def shingles(text: str, size: int) -> UInt64[np.ndarray, " n"]:
    """Returns hashes of all runs of `size` words; one hash if the text is shorter than that."""
    hashes = np.asarray([zlib.crc32(word.encode()) for word in words(text)], np.uint64)
    if not len(hashes):
        return hashes
    size = min(size, len(hashes))
    count = len(hashes) - size + 1
    runs = np.zeros(count, np.uint64)
    for place in range(size):
        runs = (runs ^ hashes[place : place + count]) * _MIX
        runs ^= runs >> np.uint64(29)
    return runs


def signature(text: str) -> UInt32[np.ndarray, " p"]:
    """Returns the minima of 64 permutations of a text's shingles."""
    runs = shingles(text, _SHINGLE)
    if not len(runs):
        runs = np.zeros(1, np.uint64)
    return ((runs[:, None] * _FACTORS).min(axis=0) >> np.uint64(32)).astype(np.uint32)


def near_duplicates(signatures: UInt32[np.ndarray, "n p"]) -> Bool[np.ndarray, " n"]:
    """Returns a mask of the texts that share about 80 % of their shingles with an earlier one.

    A text is compared with the first text that has an equal band. So a copy of a copy counts only
    if it is similar to the first.
    """
    found = np.zeros(len(signatures), bool)
    for band in range(_BANDS):
        part = np.ascontiguousarray(signatures[:, band * _ROWS : (band + 1) * _ROWS])
        keys = part.view(np.dtype((np.void, part.itemsize * _ROWS))).ravel()
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        first = first[inverse.ravel()]
        later = np.flatnonzero((first < np.arange(len(keys))) & ~found)
        agree = (signatures[later] == signatures[first[later]]).mean(axis=1)
        found[later[agree >= _SIMILAR]] = True
    return found


class Overlap:
    """A set of texts, to find what other texts share with it: whole texts, and runs of 13 words."""

    size = 13

    def __init__(self, texts: Sequence[str]) -> None:
        self._whole = {tuple(words(text)) for text in texts}
        long = [shingles(text, self.size) for text in texts if len(words(text)) >= self.size]
        self._runs = np.unique(np.concatenate(long)) if long else np.zeros(0, np.uint64)

    def whole(self, text: str) -> bool:
        """Returns whether the text is in the set, apart from case and punctuation."""
        return tuple(words(text)) in self._whole

    def shares(self, text: str) -> bool:
        """Returns whether the text shares a run of 13 words with a text of the set."""
        if not len(self._runs) or len(words(text)) < self.size:
            return False
        return bool(np.isin(shingles(text, self.size), self._runs).any())

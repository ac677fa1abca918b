"""Sequences of tokens of different lengths in one array, alone and in groups.

An array per sequence would take several times the memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from jaxtyping import Bool, Int32, Int64

Tokens = Int32[np.ndarray, " _"]  # ragged: sequences differ in length


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of tokens; number i is `flat[starts[i]:ends[i]]`.

    Shorter sequences and fewer of them share `flat`, so that neither copies tokens.
    """

    flat: Tokens
    starts: Int64[np.ndarray, " _"]
    ends: Int64[np.ndarray, " _"]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Ragged":
        """Returns the sequences, in order."""
        bounds = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(sequences), np.int32, count=int(bounds[-1]))
        return cls(flat, bounds[:-1], bounds[1:])

    @classmethod
    def joined(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """Returns the sequences of all parts, in order."""
        offsets = np.cumsum([0, *(len(part.flat) for part in parts)])
        pairs = list(zip(parts, offsets, strict=False))
        return cls(
            np.concatenate([np.empty(0, np.int32), *(part.flat for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.starts + at for part, at in pairs)]),
            np.concatenate([np.empty(0, np.int64), *(part.ends + at for part, at in pairs)]),
        )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tokens:
        return self.flat[self.starts[index] : self.ends[index]]

    @property
    def lengths(self) -> Int64[np.ndarray, " _"]:
        """The length of each sequence."""
        return self.ends - self.starts

    def take(self, which: Int64[np.ndarray, " _"] | Bool[np.ndarray, " _"]) -> "Ragged":
        """Returns the sequences of these numbers, or those where a mask is true."""
        return replace(self, starts=self.starts[which], ends=self.ends[which])

    def cut(self, limit: int) -> "Ragged":
        """Returns the first `limit` tokens of each sequence."""
        return replace(self, ends=np.minimum(self.ends, self.starts + limit))


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of sequences, such as the responses to each prompt.

    Number i has the sequences from `bounds[i]` to `bounds[i + 1]`.
    """

    sequences: Ragged
    bounds: Int64[np.ndarray, " _"]

    @classmethod
    def of(cls, sequences: Ragged, sizes: Sequence[int] | Int64[np.ndarray, " _"]) -> "Groups":
        """Returns the sequences in groups of these sizes, in order."""
        return cls(sequences, np.cumsum([0, *sizes], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Groups"]) -> "Groups":
        """Returns the groups of all parts, in order."""
        sizes = np.concatenate([part.sizes for part in parts])
        return cls.of(Ragged.joined([part.sequences for part in parts]), sizes)

    def __getitem__(self, index: int) -> list[Tokens]:
        return [self.sequences[n] for n in range(*self.bounds[index : index + 2])]

    @property
    def sizes(self) -> Int64[np.ndarray, " _"]:
        """The number of sequences in each group."""
        return np.diff(self.bounds)

    def take(self, which: Int64[np.ndarray, " _"]) -> "Groups":
        """Returns the groups of these numbers."""
        sizes = self.sizes[which]
        moved = self.bounds[which] - (np.cumsum(sizes) - sizes)  # from where each group will be
        places = np.arange(sizes.sum()) + np.repeat(moved, sizes)
        return self.of(self.sequences.take(places), sizes)

    def cut(self, limit: int) -> "Groups":
        """Returns the groups with the first `limit` tokens of each sequence."""
        return replace(self, sequences=self.sequences.cut(limit))

"""What the decode loop is given: prompts in packed rows, samples in a queue, and the cache sizes.

Prompts are dealt to the data shards and packed into rows there, the longest first. The large KV
cache that long prompts need is then made once, at the beginning. Everything here is numpy.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int

from gad_jax.base import buckets

_LEAST_CAPACITY = 64
_SPARE = 3
"""A cache with this many times the positions that are needed is replaced by a smaller one."""

# Rows of prompts are a multiple of this long, which bounds how many widths are compiled.
_ROW_MULTIPLE = 32


class Queue(NamedTuple):
    """The prompts of each data shard, B per shard; sample q of a shard has its prompt q // N.

    `starts` says where a prompt's tokens start in the prompt KV cache, `indices` are the numbers
    for the random keys, and `limits` the most tokens of a response. `real` counts a shard's prompts
    without those that only fill it up to B.
    """

    starts: Int[Array, " B"]
    lengths: Int[Array, " B"]
    last_tokens: Int[Array, " B"]
    indices: Int[Array, " B"]
    limits: Int[Array, " B"]
    real: Int[Array, " 1"]


class PromptRows(NamedTuple):
    """Prompts packed into rows, several to a row: tokens, positions, and 1, 2, … by prompt."""

    tokens: Int[Array, "M W"]
    positions: Int[Array, "M W"]
    own: Int[Array, "M W"]


@dataclasses.dataclass(frozen=True)
class PackedPrompts:
    """A batch of prompts as `engine.generate` sends it to the devices."""

    rows: PromptRows
    queue: Queue
    size: int
    """Tokens that a data shard's prompt KV cache holds, padding included."""
    longest: int
    """Tokens of the longest prompt."""
    order: np.ndarray
    """The place of each given prompt in the queue, shard after shard."""

    @property
    def prompts_per_shard(self) -> int:
        """Entries of a shard's queue; the last ones may be padding."""
        return len(self.queue.lengths) // len(self.queue.real)

    def in_order(self, results: Any, samples: int) -> np.ndarray:
        """Returns results [shards·B·N …] as [prompts N …], in the order of the prompts."""
        return results.reshape(-1, samples, *results.shape[1:])[self.order]


def cache_capacity(needed: int, longest: int = 0) -> int:
    """Returns the positions per slot of a KV cache for sequences of `needed` tokens.

    That is a third more, so that the cache need not be resized at once, rounded up to a power of
    two, so that few sizes are compiled. It is never more than `longest`, the longest sequence of
    the run (0: not known).

    Example: 100 needed → 256; 100 needed, longest 150 → 150.
    """
    size = buckets.power_of_two(max(needed + needed // 3, _LEAST_CAPACITY))
    return min(size, longest) if longest else size


def largest_capacity(needed: int, longest: int = 0) -> int:
    """Returns the positions per slot of a KV cache that holds all sequences of at most `needed`
    tokens: `longest`, which is the same in all rollouts of a run, or a power of two (0)."""
    return longest or buckets.power_of_two(max(needed, _LEAST_CAPACITY))


def is_wasteful(capacity: Any, needed: Any) -> Any:
    """Returns whether a KV cache should be replaced by a smaller one.

    Takes numbers, or arrays inside a compiled program.
    """
    return (capacity > _LEAST_CAPACITY) & (capacity >= _SPARE * needed)


def fewer_slots(slots: int) -> int:
    """Returns the number of slots that the last samples move to, or 0 if there is none."""
    return slots // 4


def make_queue(
    prompts: list[np.ndarray], indices: np.ndarray, limits: np.ndarray, shards: int
) -> PackedPrompts:
    """Returns the prompts dealt to the shards, the longest first, and packed into rows."""
    lengths = np.asarray([len(prompt) for prompt in prompts])
    per_shard = -(-len(prompts) // shards)
    by_length = np.argsort(-lengths, kind="stable")
    width = buckets.round_up(int(lengths.max()), _ROW_MULTIPLE)
    rows = [_fill_rows(by_length[shard::shards], lengths, width) for shard in range(shards)]
    count = buckets.power_of_two(max(len(shard) for shard in rows))
    grids: list[Any] = [np.zeros((shards * count, width), np.int32) for _ in range(3)]
    arrays = PromptRows(*grids)
    entries = shards * per_shard
    fields: list[Any] = [np.zeros(n, np.int32) for n in (*(entries,) * 5, shards)]
    queue = Queue(*fields)
    order = np.zeros(len(prompts), np.int64)
    for shard, mine in enumerate(rows):
        members = by_length[shard::shards]
        queue.real[shard] = len(members)
        order[members] = shard * per_shard + np.arange(len(members))
        for row, number, column, prompt in _places(mine, lengths):
            here = (shard * count + row, slice(column, column + lengths[prompt]))
            arrays.tokens[here] = prompts[prompt]
            arrays.positions[here] = np.arange(lengths[prompt])
            arrays.own[here] = number
            queue.starts[order[prompt]] = row * width + column
    queue.lengths[order] = lengths
    queue.last_tokens[order] = [prompt[-1] for prompt in prompts]
    queue.indices[order] = indices
    queue.limits[order] = limits
    return PackedPrompts(
        arrays, queue, buckets.power_of_two(count * width), int(lengths.max()), order
    )


def _places(rows: list[list[int]], lengths: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Yields the row, the number in it from 1, the first column, and the prompt of each place."""
    for row, members in enumerate(rows):
        column = 0
        for number, prompt in enumerate(members, start=1):
            yield row, number, column, prompt
            column += int(lengths[prompt])


def _fill_rows(members: np.ndarray, lengths: np.ndarray, width: int) -> list[list[int]]:
    """Returns the prompts of each row: first fit, in the order given."""
    rows: list[list[int]] = []
    left: list[int] = []
    for prompt in members:
        row = next((i for i, space in enumerate(left) if lengths[prompt] <= space), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(width)
        rows[row].append(int(prompt))
        left[row] -= int(lengths[prompt])
    return rows

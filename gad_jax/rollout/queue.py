"""What the decode loop is given: prompts in packed rows, samples in a queue, and declared sizes.

Prompts are dealt to the data shards and packed into rows there, the longest first, so that a
cache for long prompts is needed once and not again and again. Everything here is numpy.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int

from gad_jax.base import buckets

LEAST_COLUMNS = 64
SPARE = 3
"""A cache with so many times the columns that are needed is replaced by a smaller one."""

ROW_MULTIPLE = 32


class Queue(NamedTuple):
    """The prompts of each data shard, B a shard: of every one, where its tokens start in the
    prefix, its length, its last token, its number for the random keys, and the most tokens of a
    response; `real` counts those that are not there to complete the shard.

    Sample q of a shard belongs to its prompt q // N.
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
    """Tokens that a shard's prefix holds."""
    longest: int
    order: np.ndarray
    """The shard-major place of each prompt, in the order in which the prompts were given."""

    @property
    def prompts_per_shard(self) -> int:
        """Entries of a shard's queue, the last of which may be empty."""
        return len(self.queue.lengths) // len(self.queue.real)

    def in_order(self, results: Any, samples: int) -> np.ndarray:
        """Returns results [shards·B·N …] as [prompts N …], in the order of the prompts."""
        return results.reshape(-1, samples, *results.shape[1:])[self.order]


def capacity(columns: int, longest: int = 0) -> int:
    """Returns the cache size that holds so many columns and a third more, a power of two; or
    `longest`, if nothing is longer than that and it is less."""
    size = buckets.power_of_two(max(columns + columns // 3, LEAST_COLUMNS))
    return min(size, longest) if longest else size


def is_wasteful(columns: Any, needed: Any) -> Any:
    """Returns whether a cache of so many columns should be replaced by a smaller one; of numbers,
    or inside a compiled program."""
    return (columns > capacity(1)) & (columns >= SPARE * needed)


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
    width = buckets.round_up(int(lengths.max()), ROW_MULTIPLE)
    rows = [_fill_rows(by_length[shard::shards], lengths, width) for shard in range(shards)]
    count = buckets.power_of_two(max(len(shard) for shard in rows))
    grids: list[Any] = [np.zeros((shards * count, width), np.int32) for _ in range(3)]
    arrays = PromptRows(*grids)
    entries = shards * per_shard
    columns: list[Any] = [np.zeros(n, np.int32) for n in (*(entries,) * 5, shards)]
    queue = Queue(*columns)
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

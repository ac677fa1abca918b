"""Simulates the decode loop for responses of known lengths, without a network.

The rules are those of `rollout.engine.sample_responses`; a test compares both.
"""

import numpy as np
from jaxtyping import Int

from gad_jax.rollout.engine import DecodeCall
from gad_jax.rollout.queue import cache_capacity, fewer_slots, is_wasteful, largest_capacity


def decode_calls(
    prompts: Int[np.ndarray, " B"],
    responses: Int[np.ndarray, "B N"],
    shards: int,
    slots: int,
    longest: int = 0,
    limits: Int[np.ndarray, " B"] | None = None,
    steps_per_check: int = 1,
    resizes: bool = True,
) -> tuple[DecodeCall, ...]:
    """Returns the calls of `decode` for prompts and responses of these lengths, in tokens.

    `slots` are those of a data shard, and no sequence is longer than `longest` (0: any). `limits`
    are the most tokens of each prompt's responses, by default those of its longest one. Without
    `resizes`, one call samples all.

    Example: one prompt of 5 tokens with one response of 7, one slot → (DecodeCall(1, 64, 7),).
    """
    most: np.ndarray = responses.max(axis=1) if limits is None else limits
    queue = _Queue(prompts, responses, most, shards)
    slots = min(slots, queue.asked.shape[1])
    capacity = cache_capacity(int(prompts.max()), longest)
    if not resizes:
        capacity = largest_capacity(int((prompts + most).max()), longest)
    state = _Slots(queue, slots, steps_per_check)
    found: list[DecodeCall] = []
    while True:
        fewer, steps = fewer_slots(slots), 0
        while True:
            busy, needed, waiting = state.status()
            last = waiting == 0 and busy <= fewer
            if not busy + waiting:
                break
            if resizes and (needed > capacity or is_wasteful(capacity, needed) or last):
                break
            state.step(capacity)
            steps += steps_per_check
        found.append(DecodeCall(slots, capacity, steps))
        if not busy + waiting:
            return tuple(found)
        if last:
            slots = fewer
            state.keep(slots)
        capacity = cache_capacity(needed, longest)


class _Queue:
    """The samples of each data shard in their order: tokens of prompts, responses, and limits."""

    def __init__(self, prompts: np.ndarray, responses: np.ndarray, limits: np.ndarray, shards: int):
        samples = responses.shape[1]
        dealt = np.argsort(-prompts, kind="stable")
        size = -(-len(prompts) // shards) * samples
        self.asked = np.zeros((shards, size), np.int64)
        self.answered = np.zeros((shards, size), np.int64)
        self.limits = np.zeros((shards, size), np.int64)
        self.total = np.zeros(shards, np.int64)
        for shard in range(shards):
            members = dealt[shard::shards]
            count = self.total[shard] = len(members) * samples
            self.asked[shard, :count] = np.repeat(prompts[members], samples)
            self.answered[shard, :count] = responses[members].reshape(-1)
            self.limits[shard, :count] = np.repeat(limits[members], samples)


class _Slots:
    """The slots by data shard: tokens that are and may be cached, and left to draw (0 if idle)."""

    def __init__(self, queue: _Queue, slots: int, steps: int):
        self.queue, self.steps = queue, steps
        self.next = np.zeros_like(queue.total)
        self.cached = np.zeros((len(queue.total), slots), np.int64)
        self.most = np.zeros_like(self.cached)
        self.left = np.zeros_like(self.cached)

    def status(self) -> tuple[int, int, int]:
        """Returns the most busy slots, positions needed and samples waiting of any shard."""
        active = self.left > 0
        waiting = self.queue.total - self.next
        entering = np.where((waiting > 0) & ~active.all(axis=1), self._entering(), 0)
        positions = np.minimum(self.cached + self.steps, self.most)
        needed = np.where(active, positions, 0).max(initial=int(entering.max()))
        return int(active.sum(axis=1).max()), int(needed), int(waiting.max())

    def step(self, capacity: int) -> None:
        """Refills idle slots with samples that fit, then draws the tokens until the next check."""
        enters = (self.next < self.queue.total) & (self._entering() <= capacity)
        for shard in np.flatnonzero(enters & (self.left == 0).any(axis=1)):
            for slot in np.flatnonzero(self.left[shard] == 0):
                sample = self.next[shard]
                if sample == self.queue.total[shard] or self._entering()[shard] > capacity:
                    break
                self.cached[shard, slot] = self.queue.asked[shard, sample] - 1
                self.most[shard, slot] = self.cached[shard, slot] + self.queue.limits[shard, sample]
                self.left[shard, slot] = self.queue.answered[shard, sample]
                self.next[shard] += 1
        self.cached += self.steps
        self.left = np.maximum(self.left - self.steps, 0)

    def keep(self, slots: int) -> None:
        """Moves the busy slots into fewer slots."""
        kept = np.argsort(self.left == 0, axis=1, kind="stable")[:, :slots]
        self.cached, self.most, self.left = (
            np.take_along_axis(x, kept, axis=1) for x in (self.cached, self.most, self.left)
        )

    def _entering(self) -> np.ndarray:
        """Returns the positions that each shard's next sample needs until the next check."""
        last = np.minimum(self.next, self.queue.asked.shape[1] - 1)[:, None]
        asked, limit = (
            np.take_along_axis(x, last, axis=1)[:, 0] for x in (self.queue.asked, self.queue.limits)
        )
        return asked - 1 + np.minimum(self.steps, limit)

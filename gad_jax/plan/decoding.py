"""Simulates the decode loop for responses of known lengths, without a network.

The rules are those of `rollout.engine.sample_responses`; a test compares both.
"""

import numpy as np
from jaxtyping import Int

from gad_jax.rollout.engine import DecodeCall
from gad_jax.rollout.queue import cache_capacity, fewer_slots, is_wasteful


def decode_calls(
    prompts: Int[np.ndarray, " B"],
    responses: Int[np.ndarray, "B N"],
    shards: int,
    slots: int,
    longest: int = 0,
) -> tuple[DecodeCall, ...]:
    """Returns the calls of `decode` for prompts and responses of these lengths, in tokens.

    `slots` are those of a data shard, and no sequence is longer than `longest` (0: any).

    Example: one prompt of 5 tokens with one response of 7, one slot → (DecodeCall(1, 64, 7),).
    """
    queue = _Queue(prompts, responses, shards)
    slots = min(slots, queue.asked.shape[1])
    capacity = cache_capacity(int(prompts.max()), longest)
    state = _Slots(queue, slots)
    found: list[DecodeCall] = []
    while True:
        fewer, steps = fewer_slots(slots), 0
        while True:
            busy, needed, waiting = state.status()
            last = waiting == 0 and busy <= fewer
            if not busy + waiting or needed > capacity or is_wasteful(capacity, needed) or last:
                break
            state.step(capacity)
            steps += 1
        found.append(DecodeCall(slots, capacity, steps))
        if not busy + waiting:
            return tuple(found)
        if last:
            slots = fewer
            state.keep(slots)
        capacity = cache_capacity(needed, longest)


class _Queue:
    """The samples of each data shard in their order: tokens of their prompts and responses."""

    def __init__(self, prompts: np.ndarray, responses: np.ndarray, shards: int):
        samples = responses.shape[1]
        dealt = np.argsort(-prompts, kind="stable")
        size = -(-len(prompts) // shards) * samples
        self.asked = np.zeros((shards, size), np.int64)
        self.answered = np.zeros((shards, size), np.int64)
        self.total = np.zeros(shards, np.int64)
        for shard in range(shards):
            members = dealt[shard::shards]
            count = self.total[shard] = len(members) * samples
            self.asked[shard, :count] = np.repeat(prompts[members], samples)
            self.answered[shard, :count] = responses[members].reshape(-1)


class _Slots:
    """The slots by data shard: tokens of each sequence so far, and tokens left (0 if idle)."""

    def __init__(self, queue: _Queue, slots: int):
        self.queue = queue
        self.next = np.zeros_like(queue.total)
        self.tokens = np.zeros((len(queue.total), slots), np.int64)
        self.left = np.zeros_like(self.tokens)

    def status(self) -> tuple[int, int, int]:
        """Returns the most busy slots, positions needed and samples waiting of any shard."""
        active = self.left > 0
        waiting = self.queue.total - self.next
        entering = np.where((waiting > 0) & ~active.all(axis=1), self._next_prompts(), 0)
        needed = np.where(active, self.tokens, 0).max(initial=int(entering.max()))
        return int(active.sum(axis=1).max()), int(needed), int(waiting.max())

    def step(self, capacity: int) -> None:
        """Refills idle slots with samples whose prompts fit, then draws a token in every slot."""
        enters = (self.next < self.queue.total) & (self._next_prompts() <= capacity)
        for shard in np.flatnonzero(enters & (self.left == 0).any(axis=1)):
            for slot in np.flatnonzero(self.left[shard] == 0):
                sample = self.next[shard]
                if sample == self.queue.total[shard] or self.queue.asked[shard, sample] > capacity:
                    break
                self.tokens[shard, slot] = self.queue.asked[shard, sample]
                self.left[shard, slot] = self.queue.answered[shard, sample]
                self.next[shard] += 1
        self.tokens += 1
        self.left = np.maximum(self.left - 1, 0)

    def keep(self, slots: int) -> None:
        """Moves the busy slots into fewer slots."""
        kept = np.argsort(self.left == 0, axis=1, kind="stable")[:, :slots]
        self.tokens = np.take_along_axis(self.tokens, kept, axis=1)
        self.left = np.take_along_axis(self.left, kept, axis=1)

    def _next_prompts(self) -> np.ndarray:
        last = np.minimum(self.next, self.queue.asked.shape[1] - 1)
        return np.take_along_axis(self.queue.asked, last[:, None], axis=1)[:, 0]

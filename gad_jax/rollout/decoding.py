"""Slots on the devices, with every program that they need known beforehand.

Prompts run in chunks (`prefixes.py`), and the KV cache has one of a few capacities: each is twice
the one before it. So the compiled programs are a fixed set, which `warm` compiles.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from gad_jax.base import host_memory
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import chunks, live
from gad_jax.rollout.prefixes import PromptChunks
from gad_jax.rollout.queue import cache_capacity, is_wasteful
from gad_jax.rollout.ring import DecodeCopy
from gad_jax.rollout.sampling import GREEDY, RowSamplers, Sampler

LEAST_CAPACITY = 256
"""A smaller cache would save next to no time, and be one more program."""


def capacities(context: int) -> tuple[int, ...]:
    """Returns the capacities of the KV cache, the last of which holds `context` tokens.

    Example: 1000 → 256, 512, 1000; 600 → 256, 600.
    """
    sizes = []
    size = LEAST_CAPACITY
    while 3 * size <= 2 * context:
        sizes.append(size)
        size *= 2
    return (*sizes, context)


class LiveDecoder:
    """Decodes in `slots` slots, which the host fills. The caller sets the mesh: one data shard.

    A prompt runs by `prompt.begin` and `prompt.advance` until it is `prompt.done`; then `insert`
    puts it into a slot.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecodeCopy,
        slots: int,
        context: int,
        chunk: int = 0,
        kept: int = 0,
    ) -> None:
        """`context` is the most tokens of a prompt and its answer, `chunk` those of a chunk
        (0: the platform's default), `kept` those of prompts whose chunks are kept."""
        self.config, self.weights, self.slots = config, weights, slots
        self.capacities = capacities(context)
        self._level = 0
        self._state = live.start(config, slots, self.capacity)
        chunk = min(chunk or chunks.default_chunk(), context)
        self.prompt = PromptChunks(config, weights, context, chunk, kept)

    @property
    def capacity(self) -> int:
        """Tokens that a slot's KV cache holds now."""
        return self.capacities[self._level]

    def fit(self, needed: int) -> None:
        """Gives the KV cache the capacity for contexts of `needed` tokens.

        It shrinks only where that saves much.
        """
        wanted = cache_capacity(needed, self.capacities[-1])
        level = next(n for n, size in enumerate(self.capacities) if size >= wanted)
        if self.capacity < needed or (level < self._level and is_wasteful(self.capacity, needed)):
            self._resize(level)

    def _resize(self, level: int) -> None:
        shrinks = level < self._level
        while self._level != level:  # one by one: the fewer pairs, the fewer programs
            self._level += 1 if level > self._level else -1
            self._state = live.resize(self.config, self._state, self.capacity)
        if shrinks:
            jax.block_until_ready(self._state)
            host_memory.give_back()

    def insert(self, slot: int, prompt: np.ndarray, sampler: Sampler, seed: int) -> None:
        """Puts the prompt that has run into a slot; `fit` must have made room.

        Raises OverflowError for a sampler or a seed that are beyond 32 bits.
        """
        place = np.asarray([slot, len(prompt), prompt[-1]], np.int32)
        rows = RowSamplers.of(sampler)
        cache = self.prompt.cache
        self._state = live.insert(self._state, cache, *place, np.uint32(seed), rows)

    def step(self) -> tuple[Any, Any]:
        """Starts a step of all slots; returns their tokens and log-probs, which `devices.fetch`
        waits for."""
        self._state, tokens, logprobs = live.step(self.config, self.weights, self._state)
        return tokens, logprobs

    def warm(self, say: Callable[[int, int], None] = lambda number, all_: None) -> None:
        """Compiles every program by running it; `say(number, all)` tells which one is next."""
        programs = [*self.prompt.programs(), *self._programs()]
        for number, program in enumerate(programs, start=1):
            say(number, len(programs))
            program()
            jax.block_until_ready((self._state, self.prompt.cache))

    def _programs(self) -> Iterator[Callable[[], Any]]:
        levels = range(len(self.capacities))
        for level in levels:
            if level:
                yield partial(self._resize, level)
            yield partial(self.insert, 0, np.zeros(1, np.int32), GREEDY, 0)
            yield self.step
        for level in reversed(levels[:-1]):
            yield partial(self._resize, level)

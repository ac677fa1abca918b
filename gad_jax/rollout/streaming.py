"""One answer after the other, token by token: for somebody who types and reads."""

from collections.abc import Callable, Container, Iterator

import jax
import numpy as np

from gad_jax.distributed import devices
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import chunks, live
from gad_jax.rollout.decoding import capacities
from gad_jax.rollout.prefixes import PromptChunks
from gad_jax.rollout.ring import DecodeCopy
from gad_jax.rollout.sampling import RowSamplers, Sampler


class Streamer:
    """Answers one prompt at a time. The caller sets the mesh, which has one data shard.

    A prompt that begins as the one before it, as the next turn of a conversation does, continues
    there. The KV cache is made for the longest answer, so that no answer stops to compile.
    """

    def __init__(self, config: DecoderConfig, weights: DecodeCopy, context: int) -> None:
        """`context` is the most tokens of a prompt and its answer together."""
        self.config, self.weights, self.context = config, weights, context
        self._prompt = PromptChunks(config, weights, context, min(chunks.default_chunk(), context))
        self._capacities = capacities(context)
        self._state: live.Live | None = None
        self._capacity = 0
        self._compiled: set[int] = set()

    def stream(
        self,
        prompt: np.ndarray,
        limit: int,
        sampler: Sampler,
        seed: int,
        ends: Container[int],
        stopped: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> Iterator[int]:
        """Yields the tokens of an answer of at most `limit`, with the end token if it comes.

        Ends early once `stopped()`. `say` is told what takes time before the first token.
        """
        assert len(prompt) + limit <= self.context
        capacity = next(size for size in self._capacities if size >= len(prompt) + limit)
        if capacity not in self._compiled:
            say("compiling")
        say_reading = len(prompt) > self._prompt.chunk
        self._prompt.begin(prompt)
        while not self._prompt.done:
            if stopped():
                return
            if say_reading and self._compiled:
                say(f"reading {self._prompt.left} tokens")
            self._prompt.advance()
            jax.block_until_ready(self._prompt.cache.keys[-1])
        state = self._slot(capacity)
        place = np.asarray([0, len(prompt), prompt[-1]], np.int32)
        rows = RowSamplers.of(sampler)
        state = live.insert(state, self._prompt.cache, *place, np.uint32(seed), rows)
        for _ in range(limit):
            if stopped():
                break
            state, tokens, _ = live.step(self.config, self.weights, state)
            token = int(devices.fetch(tokens)[0])
            self._compiled.add(capacity)
            yield token
            if token in ends:
                break
        self._state = state

    def _slot(self, capacity: int) -> live.Live:
        state, self._state = self._state, None
        if state is None or capacity != self._capacity:
            self._capacity = capacity
            state = live.start(self.config, 1, capacity)
        return state

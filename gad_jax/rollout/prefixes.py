"""Prompts in chunks, and the chunks of earlier prompts: what two prompts share is computed once.

One prompt is worked on at a time, in one cache on the devices. A prompt that begins as the one
before it continues there. Whole chunks are also kept apart, under a hash of all tokens up to
their end, and the least recently used are dropped: a system prompt or the earlier turns of a
conversation are copied, which costs about a hundredth of computing them.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import chunks
from gad_jax.rollout.ring import DecodeCopy, PromptCache

MOST_COPIES = 16
"""Kept chunks that are copied in one go: about as long as one chunk takes to compute."""


class PromptChunks:
    """One prompt after the other, in chunks. The caller sets the mesh, which has one data shard.

        one.begin(tokens)
        while not one.done: one.advance()

    Then `cache` holds all of its tokens but the last, as `live.insert` takes them.
    """

    def __init__(
        self, config: DecoderConfig, weights: DecodeCopy, longest: int, chunk: int, kept: int = 0
    ) -> None:
        """Prompts have at most `longest` tokens; chunks of `kept` tokens in all are kept."""
        self.config, self.weights, self.chunk = config, weights, chunk
        self._size = -(-longest // chunk) * chunk
        self._most = kept // chunk
        self._kept: OrderedDict[bytes, PromptCache] = OrderedDict()
        self._names: list[bytes] = []  # of the prompt's chunks, as far as it has run
        self._cache: PromptCache | None = None
        self._tokens = np.zeros(0, np.int32)
        self._ready = 0  # of `_tokens`, from the first

    @property
    def cache(self) -> PromptCache:
        """The keys and values of the prompt, as far as it has run."""
        self._forget_lost()
        cache = self._cache
        if cache is None:
            cache = self._cache = chunks.empty(self.config, self._size)
        return cache

    @property
    def done(self) -> bool:
        """Whether the prompt can enter a slot."""
        return self._ready == len(self._tokens)

    @property
    def left(self) -> int:
        """Tokens of the prompt that have not run."""
        return len(self._tokens) - self._ready

    @property
    def kept(self) -> int:
        """Tokens of the chunks that are kept."""
        return len(self._kept) * self.chunk

    def begin(self, prompt: np.ndarray) -> None:
        """Turns to a prompt, which may share its first tokens with the one before it."""
        self._forget_lost()
        tokens = np.asarray(prompt, np.int32)[:-1]
        both = min(self._ready, len(tokens))
        differ = np.flatnonzero(self._tokens[:both] != tokens[:both])
        same = int(differ[0]) if len(differ) else both
        if same < len(tokens):
            same -= same % self.chunk
        self._tokens, self._ready = tokens, same
        self._names = self._names[: same // self.chunk]

    def _forget_lost(self) -> None:
        """Forgets a cache that a program took and did not return, because it failed."""
        if self._cache is not None and self._cache.keys[0].is_deleted():
            self._cache, self._ready, self._names = None, 0, []

    def advance(self) -> None:
        """Copies the next chunks of the prompt that are kept, or else runs one."""
        cache = self.cache
        part, name = self._next()
        copies = 0
        while name in self._kept and copies < MOST_COPIES:
            self._kept.move_to_end(name)
            cache = chunks.load(cache, self._kept[name], np.int32(self._ready))
            self._pass(cache, part, name)
            part, name = self._next()
            copies += 1
        if not copies and len(part):
            padded = np.zeros(self.chunk, np.int32)
            padded[: len(part)] = part
            start = np.int32(self._ready)
            cache, new = chunks.run(self.config, self.weights, cache, padded, start)
            self._keep(name, new)
            self._pass(cache, part, name)

    def programs(self) -> Iterator[Callable[[], None]]:
        """Yields what runs each program once."""

        def run() -> None:
            nothing, start = np.zeros(self.chunk, np.int32), np.int32(0)
            cache, new = chunks.run(self.config, self.weights, self.cache, nothing, start)
            self._cache, self._ready, self._names = cache, 0, []
            made.append(new)

        def load() -> None:
            self._cache = chunks.load(self.cache, made[0], np.int32(0))

        made: list[PromptCache] = []
        yield from (run, load)

    def _next(self) -> tuple[np.ndarray, bytes]:
        """Returns the tokens of the next chunk, and its name; a chunk that is not full has none."""
        part = self._tokens[self._ready : self._ready + self.chunk]
        if len(part) < self.chunk:
            return part, b""
        before = self._names[-1] if self._names else b""
        return part, hashlib.blake2b(before + part.tobytes(), digest_size=16).digest()

    def _keep(self, name: bytes, new: PromptCache) -> None:
        # A prompt that is longer than all that is kept must not drop its own beginning.
        if not name or len(self._names) >= self._most:
            return
        while len(self._kept) >= self._most:
            self._kept.popitem(last=False)
        self._kept[name] = new

    def _pass(self, cache: PromptCache, part: np.ndarray, name: bytes) -> None:
        self._cache = cache
        self._ready += len(part)
        if name:
            self._names.append(name)
        if self.done:  # the last first: a chunk is of no use without those before it
            for one in reversed(self._names):
                if one in self._kept:
                    self._kept.move_to_end(one)

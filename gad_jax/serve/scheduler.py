"""Continuous batching: requests take slots as they come, and free them when they are answered.

One thread owns the devices. It launches a step before it reads the tokens of the previous one, so
the devices never wait for the host. The price: a slot whose answer has just ended takes part in one
more step, whose token is dropped.
"""

import collections
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from gad_jax.base import shortage
from gad_jax.distributed import devices
from gad_jax.rollout import live
from gad_jax.rollout.live import Live
from gad_jax.rollout.queue import cache_capacity, is_wasteful
from gad_jax.rollout.sampling import RowSamplers, Sampler
from gad_jax.serve.student import ServedStudent

logger = logging.getLogger(__name__)

Reason = Literal["stop", "length", "error"]


class Busy(Exception):
    """The queue is full."""


@dataclass(eq=False)
class Request:
    """One answer to decode.

    The scheduler's thread calls `on_token(token, log_prob)` for each token and `on_end(reason)`
    once. The reason is "stop" at an end token, which is not passed on; "length"; or "error" if
    `on_token` raises or decoding ends. Setting `cancelled` frees the slot, and ends the calls.
    `end_tokens` are those of the student's chat unless given.
    """

    prompt: np.ndarray
    max_new_tokens: int
    sampler: Sampler
    seed: int
    on_token: Callable[[int, float], None]
    on_end: Callable[[Reason], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    answered: int = 0
    end_tokens: frozenset[int] | None = None


class Scheduler:
    """Decodes for one student, in a thread between `start` and `stop`."""

    def __init__(self, student: ServedStudent, waiting: int) -> None:
        self.student = student
        self._most_waiting = waiting
        self._waiting: collections.deque[Request] = collections.deque()
        self._slots: list[Request | None] = [None] * student.slots
        self._changed = threading.Condition()
        self._stopping = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        """Starts the thread; returns when a first answer has compiled the programs."""
        self._thread.start()
        ended = threading.Event()
        prompt = np.asarray([self.student.chat.end_token], np.int32)
        nothing = Request(prompt, 1, Sampler(), 0, lambda *_: None, lambda _: ended.set())
        self.submit(nothing)
        ended.wait()
        self.check()

    def stop(self) -> None:
        """Ends the thread; open requests end with "error"."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def check(self) -> None:
        """Raises the error that ended decoding, if one did."""
        if self._error is not None:
            raise self._error

    @property
    def busy(self) -> int:
        """Slots that hold a request."""
        return sum(request is not None for request in self._slots)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread is decoding."""
        return self._thread.is_alive() and self._error is None

    def submit(self, request: Request) -> None:
        """Queues a request, whose prompt and answer must fit the context. Raises Busy."""
        assert 0 < len(request.prompt) <= self.student.context - request.max_new_tokens
        with self._changed:
            self.check()
            if len(self._waiting) >= self._most_waiting:
                raise Busy
            self._waiting.append(request)
            self._changed.notify()

    def _run(self) -> None:
        try:
            with jax.set_mesh(self.student.mesh):
                self._decode()
        except Exception as error:
            if shortage.what_ran_out(error) is None:  # which `check` raises, for one sentence
                logger.exception("decoding ended")
            self._error = error
        finally:
            with self._changed:
                left = [*self._slots, *self._waiting]
                self._stopping = True
            for request in left:
                if request is not None and not request.cancelled.is_set():
                    request.on_end("error")

    def _decode(self) -> None:
        student = self.student
        self._capacity = cache_capacity(1, student.context)
        state = live.start(student.config, student.slots, self._capacity)
        before: tuple[Any, list[Request | None]] | None = None
        while self._wait(before is not None):
            state = self._admit(state)
            held = list(self._slots)
            now = None
            if any(held):
                state, *drawn = live.step(student.config, student.weights, state)
                now = (drawn, held)
            if before is not None:
                self._hand_out(*before)
            before = now

    def _wait(self, working: bool) -> bool:
        """Sleeps while there is nothing to do; returns False when the thread is to stop."""
        with self._changed:
            idle = not working and not any(self._slots)
            self._changed.wait_for(lambda: self._stopping or not idle or bool(self._waiting))
            return not self._stopping

    def _admit(self, state: Live) -> Live:
        """Fills the free slots, and resizes the KV cache to what they need."""
        entering: list[tuple[int, Request]] = []
        with self._changed:
            for slot, request in enumerate(self._slots):
                if request is not None and request.cancelled.is_set():
                    self._slots[slot] = request = None
                while request is None and self._waiting:
                    request = self._waiting.popleft()
                    request = None if request.cancelled.is_set() else request
                    if request is not None:
                        self._slots[slot] = request
                        entering.append((slot, request))
        state = self._fit(state)
        for slot, request in entering:
            prefix = self.student.prefill(request.prompt)
            place = np.asarray([slot, len(request.prompt), request.prompt[-1]], np.int32)
            sampler = RowSamplers.of(request.sampler)
            state = live.insert(state, prefix, *place, np.uint32(request.seed), sampler)
        return state

    def _fit(self, state: Live) -> Live:
        # One more than the answered tokens: a step may be running on the devices.
        lengths = [len(r.prompt) + r.answered + 1 for r in self._slots if r is not None]
        needed = max(lengths, default=0)
        capacity, wanted = self._capacity, cache_capacity(needed, self.student.context)
        wasteful = is_wasteful(capacity, needed)
        if capacity < min(needed, self.student.context) or (wasteful and wanted < capacity):
            state = live.resize(self.student.config, state, wanted)
            self._capacity = wanted
        return state

    def _hand_out(self, drawn: Any, held: list[Request | None]) -> None:
        """Passes on the tokens of a step, and frees the slots whose answer has ended."""
        tokens, logprobs = devices.fetch(drawn)
        for slot, request in enumerate(held):
            if request is None or self._slots[slot] is not request:
                continue  # empty, or ended one step earlier
            reason = self._take(request, int(tokens[slot]), float(logprobs[slot]))
            if reason is not None:
                self._slots[slot] = None
                if not request.cancelled.is_set():
                    request.on_end(reason)

    def _take(self, request: Request, token: int, logprob: float) -> Reason | None:
        if request.cancelled.is_set():
            return "stop"
        request.answered += 1
        ends = request.end_tokens
        if token in (self.student.chat.end_tokens if ends is None else ends):
            return "stop"
        try:
            request.on_token(token, logprob)
        except Exception:  # a failing request must not end the others
            logger.exception("an answer ended")
            return "error"
        return "length" if request.answered >= request.max_new_tokens else None

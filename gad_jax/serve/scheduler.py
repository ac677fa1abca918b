"""Continuous batching: requests take slots as they come, and free them when they are answered.

One thread owns the devices. It launches a step before it reads the tokens of the previous one, so
the devices never wait for the host. The price: a slot whose answer has just ended takes part in one
more step, whose token is dropped.

The prompts of new requests run in chunks between the steps, so that other answers continue. A
request that fails costs itself alone; what the devices refuse ends the thread.
"""

import collections
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from gad_jax.base import shortage
from gad_jax.distributed import devices
from gad_jax.rollout.decoding import LiveDecoder
from gad_jax.rollout.sampling import Sampler
from gad_jax.serve.student import ServedStudent

logger = logging.getLogger(__name__)

Reason = Literal["stop", "length", "error"]

MOST_CHUNKS = 4
"""Chunks that run between two steps, at most: what an answer may be held up by."""


class Busy(Exception):
    """The queue is full."""


@dataclass(eq=False)
class Request:
    """One answer to decode.

    The scheduler's thread calls `on_token(token, log_prob)` for each token and `on_end(reason)`
    once. The reason is "stop" at an end token, which is not passed on; "length"; or "error" if
    `on_token` raises, if the request cannot be decoded, or if decoding ends. Setting `cancelled`
    frees the place in the queue or the slot, and ends the calls.
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
        self._entering: collections.deque[int] = collections.deque()  # slots whose prompt must run
        self._running: Request | None = None  # whose prompt runs in chunks
        self._changed = threading.Condition()
        self._stopping = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._ready = threading.Event()
        self._say: Callable[[int, int], None] | None = None

    def start(self, say: Callable[[int, int], None] | None = lambda number, all_: None) -> None:
        """Starts the thread; returns when all programs are compiled.

        `say(number, all)` is told which program is compiled next. With None, each is compiled when
        a request first needs it.
        """
        self._say = say
        self._thread.start()
        self._ready.wait()
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
        """Requests that wait for a slot, without those that are cancelled."""
        with self._changed:
            self._drop_cancelled()
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
                self._drop_cancelled()
            if len(self._waiting) >= self._most_waiting:
                raise Busy
            self._waiting.append(request)
            self._changed.notify()

    def _drop_cancelled(self) -> None:
        if any(request.cancelled.is_set() for request in self._waiting):
            left = [one for one in self._waiting if not one.cancelled.is_set()]
            self._waiting = collections.deque(left)

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
                if request is not None:
                    _end(request, "error")
            self._ready.set()

    def _decode(self) -> None:
        one = self.student
        decoder = LiveDecoder(one.config, one.weights, one.slots, one.context, one.chunk, one.kept)
        if self._say is not None:
            decoder.warm(self._say)
        self._ready.set()
        before: tuple[Any, list[Request | None]] | None = None
        while self._wait(before is not None):
            self._take_in()
            self._prefill(decoder)
            held = self._decoding()
            now = None
            if any(held):
                self._fit(decoder, held)
                now = (decoder.step(), held)
            if before is not None:
                self._hand_out(*before)
            before = now

    def _decoding(self) -> list[Request | None]:
        """Returns the slots whose prompt is in them."""
        return [None if n in self._entering else one for n, one in enumerate(self._slots)]

    def _fit(self, decoder: LiveDecoder, held: list[Request | None]) -> None:
        # One more than the answered tokens: a step may be running on the devices.
        lengths = [len(r.prompt) + r.answered + 1 for r in held if r is not None]
        decoder.fit(min(max(lengths), self.student.context))

    def _wait(self, working: bool) -> bool:
        """Sleeps while there is nothing to do; returns False when the thread is to stop."""
        with self._changed:
            idle = not working and not any(self._slots)
            self._changed.wait_for(lambda: self._stopping or not idle or bool(self._waiting))
            return not self._stopping

    def _take_in(self) -> None:
        """Frees the slots of cancelled requests, and gives free slots to those that wait."""
        with self._changed:
            self._drop_cancelled()
            for slot, request in enumerate(self._slots):
                if request is not None and request.cancelled.is_set():
                    self._free(slot)
                if self._slots[slot] is None and self._waiting:
                    self._slots[slot] = self._waiting.popleft()
                    self._entering.append(slot)

    def _free(self, slot: int) -> None:
        self._slots[slot] = None
        if slot in self._entering:
            self._entering.remove(slot)

    def _prefill(self, decoder: LiveDecoder) -> None:
        """Runs chunks of prompts, the first come first.

        The more slots wait for their prompt and the fewer decode, the more of them.
        """
        decoding = self.busy - len(self._entering)
        for _ in range(min(max(len(self._entering) // max(decoding, 1), 1), MOST_CHUNKS)):
            if not self._entering:
                return
            slot = self._entering[0]
            request = self._slots[slot]
            assert request is not None
            try:
                self._advance(decoder, slot, request)
            except jax.errors.JaxRuntimeError:  # the devices': no other request would fare better
                raise
            except Exception:
                logger.exception("a request could not be decoded")
                self._free(slot)
                _end(request, "error")
        if not decoding:  # no step is waited for: a request that comes must find little queued
            jax.block_until_ready(decoder.prompt.cache.keys[-1])

    def _advance(self, decoder: LiveDecoder, slot: int, request: Request) -> None:
        """Runs the next chunk of a request, and puts it into its slot after the last one."""
        if self._running is not request:
            self._running = request
            decoder.prompt.begin(request.prompt)
        if not decoder.prompt.done:
            decoder.prompt.advance()
        if decoder.prompt.done:
            self._running = None
            self._entering.popleft()
            self._fit(decoder, self._decoding())
            decoder.insert(slot, request.prompt, request.sampler, request.seed)

    def _hand_out(self, drawn: Any, held: list[Request | None]) -> None:
        """Passes on the tokens of a step, and frees the slots whose answer has ended."""
        tokens, logprobs = devices.fetch(drawn)
        for slot, request in enumerate(held):
            if request is None or self._slots[slot] is not request:
                continue  # empty, or ended one step earlier
            reason = self._take(request, int(tokens[slot]), float(logprobs[slot]))
            if reason is not None:
                self._slots[slot] = None
                _end(request, reason)

    def _take(self, request: Request, token: int, logprob: float) -> Reason | None:
        if request.cancelled.is_set():
            return "stop"
        if not math.isfinite(logprob):
            logger.error("an answer ended: its sampler leaves no token")
            return "error"
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


def _end(request: Request, reason: Reason) -> None:
    if request.cancelled.is_set():
        return
    try:
        request.on_end(reason)
    except Exception:
        logger.exception("the end of an answer could not be told")

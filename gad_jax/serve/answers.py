"""The answer to one HTTP request: its choices as the scheduler decodes them, whole or streamed."""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.responses import StreamingResponse

from gad_jax.data import thoughts
from gad_jax.data.chat import Chat
from gad_jax.serve import forms, scheduler
from gad_jax.serve.errors import Refused
from gad_jax.serve.forms import Chunk, Drawn, Form
from gad_jax.serve.text import TextStream
from gad_jax.serve.wire import Asked

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass
class Answer:
    """The choices of one request: the scheduler's thread adds chunks, the event loop sends them.

    The answers to `plain` prompts are texts without thoughts and without the template's blanks.
    """

    asked: Asked
    model: str
    form: Form
    chat: Chat
    plain: bool
    prompt_tokens: int
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = self.id or f"{self.form.prefix}-{uuid.uuid4().hex}"
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        self._requests: list[scheduler.Request] = []

    def request(self, prompt: np.ndarray, longest: int, seed: int) -> scheduler.Request:
        """Returns the scheduler's request for the next choice."""
        choice = len(self._requests)
        stream = TextStream(self.chat, self.asked.stops, prompt.tolist() if self.plain else None)
        splitter = _Plain() if self.plain else thoughts.Splitter(self.chat.opens_thought)
        held: list[Drawn] = []

        def send(chunk: Chunk) -> None:
            try:
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            except RuntimeError:
                if not self._loop.is_closed():
                    raise
                one.cancelled.set()  # the server has stopped: nobody reads on

        def on_token(token: int, logprob: float) -> None:
            if not math.isfinite(logprob):
                raise ValueError(f"the log-prob of token {token} is {logprob}")
            text = stream.push(token)
            if self.asked.wants_logprobs:
                held.append((token, logprob))
            if stream.stopped:
                one.cancelled.set()
                finish("stop", text)
                return
            parts = splitter.push(text)
            if parts.answer or parts.thoughts:
                send(Chunk(choice, parts.answer, parts.thoughts, tuple(held)))
                held.clear()

        def on_end(reason: scheduler.Reason) -> None:
            finish(reason, stream.end(finished=reason == "stop"))

        def finish(reason: scheduler.Reason, text: str) -> None:
            parts, last = splitter.push(text), splitter.end()
            text, said = parts.answer + last.answer, parts.thoughts + last.thoughts
            send(Chunk(choice, text, said, tuple(held), one.answered, reason))

        one = scheduler.Request(
            *(prompt, longest, self.asked.sampler, seed % 2**32), on_token, on_end
        )
        one.end_tokens = self._end_tokens()
        self._requests.append(one)
        return one

    def _end_tokens(self) -> frozenset[int]:
        ends = () if self.asked.ignore_eos else self.chat.end_tokens
        return frozenset([*ends, *self.asked.stop_token_ids])

    def cancel(self) -> None:
        """Frees the slots and places of all choices."""
        for request in self._requests:
            request.cancelled.set()

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yields the chunks of all choices, until the last choice has ended."""
        open_choices = len(self._requests)
        try:
            while open_choices:
                chunk = await self._chunks.get()
                if chunk.reason == "error":
                    raise Refused(500, "the server could not continue the answer", "failed")
                open_choices -= bool(chunk.reason)
                yield chunk
        finally:
            self.cancel()

    async def collect(self) -> dict[str, Any]:
        """Returns the response of a request that is not streamed."""
        choices: list[list[Chunk]] = [[] for _ in self._requests]
        async for chunk in self.chunks():
            choices[chunk.choice].append(chunk)
        return {
            **self._head(self.form.whole_kind),
            "choices": [self.form.whole(chunks) for chunks in choices],
            "usage": self._usage(sum(chunks[-1].tokens for chunks in choices)),
        }

    async def events(self) -> AsyncIterator[bytes]:
        """Yields server-sent events."""
        head = self._head(self.form.part_kind)
        tokens = 0
        try:
            for choice in range(len(self._requests)):
                opening = self.form.opening(choice)
                if opening is not None:
                    yield forms.data(head | {"choices": [opening]})
            async for chunk in self.chunks():
                tokens += chunk.tokens
                yield forms.data(head | {"choices": [self.form.part(chunk)]})
        except Refused as refused:
            yield forms.data(refused.body)
            return
        finally:
            self.cancel()
        options = self.asked.stream_options
        if options is not None and options.include_usage:
            yield forms.data(head | {"choices": [], "usage": self._usage(tokens)})
        yield b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self, answered: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": answered,
            "total_tokens": self.prompt_tokens + answered,
        }


class Stream(StreamingResponse):
    """A streamed answer; a client that hangs up frees its slots, also before the first event."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.events(), headers=STREAM_HEADERS)
        self.answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answer.cancel()


class _Plain:
    """Takes the place of `thoughts.Splitter`: a plain text has no thoughts."""

    def push(self, text: str) -> thoughts.Parts:
        """Returns the text as it is."""
        return thoughts.Parts("", text)

    def end(self) -> thoughts.Parts:
        """Returns nothing more."""
        return thoughts.Parts("", "")


def seeds(asked: Asked, prompts: Sequence[Any], unseeded: int) -> list[int]:
    """Returns a seed for each choice of each prompt: a prompt's are the same in every request with
    a seed, and without one they are counted up from `unseeded`."""
    places = range(len(prompts) * asked.choices)
    if asked.seed is None:
        return [unseeded + place for place in places]
    return [asked.seed + place % asked.choices for place in places]

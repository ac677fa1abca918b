"""OpenAI's chat completions over HTTP, on a scheduler.

`POST /v1/chat/completions` (also streamed, as server-sent events), `GET /v1/models` and
`GET /health`. A client that hangs up frees its slots.
"""

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gad_jax.base.errors import UserError
from gad_jax.data import thoughts
from gad_jax.data.chat import Chat
from gad_jax.serve import scheduler, wire
from gad_jax.serve.scheduler import Busy, Scheduler
from gad_jax.serve.text import TextStream
from gad_jax.serve.wire import ChatRequest

MOST_BYTES = 16 * 2**20
LOCAL = ("127.0.0.1", "localhost")
RETRY_SECONDS = 2


@dataclass(frozen=True)
class Terms:
    """What clients meet: the model's name, the API key they must send ("": none), the default limit
    of an answer, and the first seed for requests without one."""

    name: str
    key: str
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Chunk:
    """What a token adds to a choice; the last chunk of a choice has a reason."""

    choice: int
    text: str = ""
    thoughts: str = ""
    logprobs: tuple[dict[str, Any], ...] = ()
    tokens: int = 0
    reason: str = ""


class _Refused(Exception):
    """An error response in OpenAI's form."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def response(self) -> Response:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        busy = self.status in (429, 503)
        headers = {"Retry-After": str(RETRY_SECONDS)} if busy else {}
        return JSONResponse({"error": error}, self.status, headers=headers)


def make(decoding: Scheduler, terms: Terms, host: str) -> Starlette:
    """Returns the application."""
    service = _Service(decoding, terms)
    # Against DNS rebinding: a website whose name resolves to this computer is refused.
    hosts = [*LOCAL, host] if host in LOCAL or host.startswith("127.") else ["*"]
    return Starlette(
        routes=[
            Route("/v1/chat/completions", service.complete, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/health", service.health),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )


class _Service:
    def __init__(self, decoding: Scheduler, terms: Terms) -> None:
        self.decoding, self.terms = decoding, terms
        self.started = int(time.time())
        self._unseeded = 0  # answers to requests without a seed

    async def health(self, request: Request) -> Response:
        """Reports slots and queue; 503 once decoding has ended."""
        decoding = self.decoding
        state = {"slots": decoding.student.slots, "busy": decoding.busy}
        state |= {"waiting": decoding.waiting}
        return JSONResponse(state, 200 if decoding.alive else 503)

    async def models(self, request: Request) -> Response:
        """Names the one model."""
        try:
            self._check_key(request)
        except _Refused as refused:
            return refused.response()
        model = {"id": self.terms.name, "object": "model", "created": self.started}
        model |= {"owned_by": "gad_jax", "max_model_len": self.decoding.student.context}
        return JSONResponse({"object": "list", "data": [model]})

    async def complete(self, request: Request) -> Response:
        """Answers a conversation."""
        try:
            self._check_key(request)
            asked = wire.read(await _read(request))
            answer = await self._ask(asked)
        except UserError as error:
            return _Refused(400, str(error), "invalid_request").response()
        except _Refused as refused:
            return refused.response()
        if asked.stream:
            return StreamingResponse(answer.events(), media_type="text/event-stream")
        collecting = asyncio.create_task(answer.collect())
        gone = asyncio.create_task(_gone(request))
        await asyncio.wait([collecting, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not collecting.done():
            collecting.cancel()
            answer.cancel()
            return Response(status_code=499)
        try:
            return JSONResponse(collecting.result())
        except _Refused as refused:
            return refused.response()

    def _check_key(self, request: Request) -> None:
        sent = request.headers.get("authorization", "").encode()
        if self.terms.key and not hmac.compare_digest(sent, f"Bearer {self.terms.key}".encode()):
            raise _Refused(401, "the API key is missing or wrong", "invalid_api_key")

    async def _ask(self, asked: ChatRequest) -> "_Answer":
        """Submits the request to the scheduler, once per choice."""
        if asked.model != self.terms.name:
            message = f"model {asked.model!r} is not served here; {self.terms.name!r} is"
            raise _Refused(404, message, "model_not_found")
        student = self.decoding.student
        chat = await asyncio.to_thread(student.chat_with, asked.chat_template_kwargs or {})
        prompt = await asyncio.to_thread(student.encode, asked.conversation, chat)
        room = self.decoding.student.context - len(prompt)
        given = asked.max_completion_tokens or asked.max_tokens
        if room < (given or 1):
            message = (
                f"the prompt has {len(prompt)} tokens, and {self.decoding.student.context} are for "
                f"it and its answer of {given or 'at least 1'}; shorten it"
            )
            raise _Refused(400, message, "context_length_exceeded")
        choices, seed = asked.n or 1, asked.seed
        if seed is None:
            seed = self.terms.seed + self._unseeded
            self._unseeded += choices
        answer = _Answer(asked, self.terms.name, chat, len(prompt))
        for choice in range(choices):
            longest = given or min(self.terms.max_new_tokens, room)
            one = answer.request(choice, prompt, longest, seed)
            try:
                self.decoding.submit(one)
            except Busy:
                answer.cancel()
                raise _Refused(429, "too many requests wait; ask later", "busy") from None
            except Exception:
                answer.cancel()
                raise _Refused(503, "the server has stopped decoding", "stopped") from None
        return answer


@dataclass
class _Answer:
    """The choices of one request: the scheduler's thread adds chunks, the event loop sends them."""

    asked: ChatRequest
    model: str
    chat: Chat
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        self._requests: list[scheduler.Request] = []

    def request(
        self, choice: int, prompt: np.ndarray, longest: int, seed: int
    ) -> scheduler.Request:
        """Returns the scheduler's request for one choice."""
        stream = TextStream(self.chat, self.asked.stops)
        splitter = thoughts.Splitter(self.chat.opens_thought)
        held: list[dict[str, Any]] = []

        def send(chunk: Chunk) -> None:
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)

        def on_token(token: int, logprob: float) -> None:
            text = stream.push(token)
            if self.asked.logprobs:
                held.append(_logprob(self.chat, token, logprob))
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
            *(prompt, longest, self.asked.sampler, (seed + choice) % 2**32), on_token, on_end
        )
        self._requests.append(one)
        return one

    def cancel(self) -> None:
        """Frees the slots of all choices."""
        for request in self._requests:
            request.cancelled.set()

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yields the chunks of all choices, until the last choice has ended."""
        open_choices = len(self._requests)
        try:
            while open_choices:
                chunk = await self._chunks.get()
                if chunk.reason == "error":
                    raise _Refused(500, "the server could not continue the answer", "failed")
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
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": wire.message(
                        "".join(p.text for p in chunks), "".join(p.thoughts for p in chunks)
                    ),
                    "logprobs": self._logprobs([one for p in chunks for one in p.logprobs]),
                    "finish_reason": chunks[-1].reason,
                }
                for index, chunks in enumerate(choices)
            ],
            "usage": self._usage(sum(chunks[-1].tokens for chunks in choices)),
        }

    async def events(self) -> AsyncIterator[bytes]:
        """Yields server-sent events."""
        head = self._head("chat.completion.chunk")
        tokens = 0
        try:
            for choice in range(len(self._requests)):
                yield wire.event(head, choice, {"role": "assistant", "content": ""})
            async for chunk in self.chunks():
                tokens += chunk.tokens
                delta = {"content": chunk.text} if chunk.text else {}
                delta |= {"reasoning_content": chunk.thoughts} if chunk.thoughts else {}
                logprobs = self._logprobs(chunk.logprobs)
                yield wire.event(head, chunk.choice, delta, logprobs, chunk.reason or None)
        except _Refused as refused:
            yield b"data: " + bytes(refused.response().body) + b"\n\n"
            return
        finally:
            self.cancel()
        options = self.asked.stream_options
        if options is not None and options.include_usage:
            yield wire.data(head | {"choices": [], "usage": self._usage(tokens)})
        yield b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, content: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": list(content)} if self.asked.logprobs else None

    def _usage(self, answered: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": answered,
            "total_tokens": self.prompt_tokens + answered,
        }


async def _read(request: Request) -> bytes:
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                message = f"the request is longer than {MOST_BYTES >> 20} MiB"
                raise _Refused(413, message, "too_large")
    except ClientDisconnect:
        raise _Refused(499, "the client has hung up", "gone") from None
    return bytes(body)


async def _gone(request: Request) -> None:
    """Returns when the client has hung up; the request must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _logprob(chat: Chat, token: int, logprob: float) -> dict[str, Any]:
    text = chat.tokenizer.decode([token])
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}

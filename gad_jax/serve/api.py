"""OpenAI's completions over HTTP, on a scheduler, and a page to chat with the student.

`POST /v1/chat/completions` and `POST /v1/completions` (also streamed, as server-sent events),
`GET /v1/models`, `GET /health`, and the page at `/`. A client that hangs up frees its slots.
"""

import asyncio
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gad_jax.serve import answers, errors, guard, page, wire
from gad_jax.serve.answers import Answer
from gad_jax.serve.errors import Refused
from gad_jax.serve.forms import ChatForm, CompletionForm
from gad_jax.serve.guard import Access, Bodies, Guard
from gad_jax.serve.pieces import Pieces
from gad_jax.serve.prompts import Prompts
from gad_jax.serve.scheduler import Busy, Scheduler
from gad_jax.serve.wire import ChatRequest, CompletionRequest

COMPLETION_TOKENS = 16
"""The limit of a completion that sets none, as OpenAI and vLLM have it."""


@dataclass(frozen=True)
class Terms:
    """What clients meet: the model's name, the API key they must send ("": none), the default limit
    of an answer, and the first seed for requests without one."""

    name: str
    key: str
    max_new_tokens: int
    seed: int


def make(decoding: Scheduler, terms: Terms, access: Access) -> Starlette:
    """Returns the application."""
    service = _Service(decoding, terms)
    middleware = [Middleware(Guard, access=access, most_bytes=service.most_bytes)]
    if access.origins:
        allowed = {"allow_origins": access.origins, "allow_methods": ["GET", "POST"]}
        middleware.insert(0, Middleware(CORSMiddleware, **allowed, allow_headers=["*"]))
    return Starlette(
        routes=[
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/completions", service.complete, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.model),
            Route("/health", service.health),
            *page.routes(),
        ],
        middleware=middleware,
        exception_handlers=errors.HANDLERS,
    )


class _Service:
    def __init__(self, decoding: Scheduler, terms: Terms) -> None:
        self.decoding, self.terms = decoding, terms
        self.started = int(time.time())
        self.pieces = Pieces(decoding.student.chat.tokenizer)
        self.prompts = Prompts(decoding.student, self.pieces)
        self.most_bytes = guard.most_bytes(decoding.student.context)
        self._bodies = Bodies(self.most_bytes)
        self._unseeded = 0  # answers to requests without a seed

    async def health(self, request: Request) -> Response:
        """Reports slots and queue; 503 once decoding has ended."""
        decoding = self.decoding
        state = {"slots": decoding.student.slots, "busy": decoding.busy}
        state |= {"waiting": decoding.waiting}
        return JSONResponse(state, 200 if decoding.alive else 503)

    async def models(self, request: Request) -> Response:
        """Names the one model."""
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._model]})

    async def model(self, request: Request) -> Response:
        """Describes the model, if it is the one."""
        self._check_key(request)
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model)

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        asked = await self._read(request, ChatRequest)
        chat, prompt = await asyncio.to_thread(self.prompts.of_chat, asked)
        form = ChatForm(self.pieces if asked.wants_logprobs else None)
        answer = Answer(asked, self.terms.name, form, chat, False, len(prompt))
        return await self._answer(request, answer, [prompt], self.terms.max_new_tokens)

    async def complete(self, request: Request) -> Response:
        """Continues plain prompts."""
        asked = await self._read(request, CompletionRequest)
        prompts = await asyncio.to_thread(self.prompts.of_completion, asked)
        echoed = await asyncio.to_thread(self.prompts.echoed, asked)
        form = CompletionForm(self.pieces if asked.wants_logprobs else None, echoed)
        total = sum(map(len, prompts))
        answer = Answer(asked, self.terms.name, form, self.decoding.student.chat, True, total)
        return await self._answer(request, answer, prompts, COMPLETION_TOKENS)

    @property
    def _model(self) -> dict[str, Any]:
        model = {"id": self.terms.name, "object": "model", "created": self.started}
        return model | {"owned_by": "gad_jax", "max_model_len": self.decoding.student.context}

    def _check_key(self, request: Request) -> None:
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(sent.strip().encode(), self.terms.key.encode())
        if self.terms.key and not (right and scheme.lower() == "bearer"):
            headers = {"WWW-Authenticate": "Bearer"}
            message = "the API key is missing or wrong"
            raise Refused(401, message, "invalid_api_key", headers=headers)

    def _check_model(self, name: str) -> None:
        if name != self.terms.name:
            message = f"model {name[:200]!r} is not served here; {self.terms.name!r} is"
            raise Refused(404, message, "model_not_found", "model")

    async def _read(self, request: Request, form: type[wire.Kind]) -> wire.Kind:
        self._check_key(request)
        asked = wire.read(await self._bodies.read(request), form)
        self._check_model(asked.model)
        return asked

    async def _answer(
        self, request: Request, answer: Answer, prompts: Sequence[np.ndarray], default: int
    ) -> Response:
        """Submits the choices, and returns the response or the stream of their answers."""
        self._submit(answer, prompts, default)
        if answer.asked.stream:
            return answers.Stream(answer)
        collecting = asyncio.create_task(answer.collect())
        gone = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait([collecting, gone], return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return Response(status_code=499)
            return JSONResponse(collecting.result())
        finally:
            gone.cancel()
            collecting.cancel()
            answer.cancel()

    def _submit(self, answer: Answer, prompts: Sequence[np.ndarray], default: int) -> None:
        asked = answer.asked
        choices = [prompt for prompt in prompts for _ in range(asked.choices)]
        seeds = answers.seeds(asked, prompts, self.terms.seed + self._unseeded)
        self._unseeded += len(choices) if asked.seed is None else 0
        try:
            for prompt, seed in zip(choices, seeds, strict=True):
                room = self.decoding.student.context - len(prompt)
                self.decoding.submit(
                    answer.request(prompt, asked.limit or min(default, room), seed)
                )
        except Exception as error:
            answer.cancel()
            if isinstance(error, Busy):
                raise Refused(429, "too many requests wait; retry later", "busy") from None
            if not self.decoding.alive:
                raise Refused(503, "the server has stopped decoding", "stopped") from None
            raise


async def _gone(request: Request) -> None:
    """Returns when the client has hung up; the request must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass

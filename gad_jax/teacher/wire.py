"""The bodies that an endpoint may answer with, and what is kept of them."""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from gad_jax.data.sources.rows import FINISHED

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Usage:
    """Tokens that were paid for."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """One answer. `finish_reason` is stop, length, content_filter, refusal or the server's own
    word; `text` may be empty, which was paid for all the same."""

    text: str
    finish_reason: str

    @property
    def complete(self) -> bool:
        """Whether it is a whole answer: neither cut nor refused nor empty."""
        return self.finish_reason in FINISHED and self.text.strip() != ""


@dataclass(frozen=True)
class Reply:
    """What one request returned. `usage` is None where the server does not say."""

    id: str
    model: str
    completions: tuple[Completion, ...]
    usage: Usage | None


class BadBody(ValueError):
    """A body that is not an answer. Its words are ours alone: nothing of the body is quoted."""


class _Part(BaseModel):
    text: str = ""


class _Message(BaseModel):
    content: str | list[_Part] | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    index: int = 0


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class _Chat(BaseModel):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Error(BaseModel):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _Failure(BaseModel):
    error: _Error | str | None = None


class _Named(BaseModel):
    id: str


class _Counts(BaseModel):
    completed: int = 0
    failed: int = 0


class _Errors(BaseModel):
    data: list[_Error] = []


class BatchStatus(BaseModel):
    """What a provider says of a batch."""

    id: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: _Counts | None = None
    errors: _Errors | None = None
    metadata: dict[str, str] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ("completed", "failed", "expired", "cancelled")

    @property
    def done(self) -> int:
        """Requests that are through."""
        counts = self.request_counts
        return counts.completed + counts.failed if counts else 0

    @property
    def problem(self) -> str:
        """Why it failed as a whole, in the provider's words; empty where it says nothing."""
        errors = self.errors.data if self.errors else []
        return "; ".join(error.message or str(error.code) for error in errors[:3])


class _Batches(BaseModel):
    data: list[BatchStatus]
    has_more: bool = False


class _BatchResponse(BaseModel):
    status_code: int
    body: Any = None


class _BatchLine(BaseModel):
    custom_id: str
    response: _BatchResponse | None = None
    error: _Error | None = None


_WHAT: dict[type[BaseModel], str] = {
    _Chat: "chat completion",
    _Named: "file",
    BatchStatus: "batch",
    _Batches: "list of batches",
    _BatchLine: "line of a batch",
}


def read_reply(body: bytes) -> Reply:
    """Returns the reply in the body of a chat completion. Raises BadBody."""
    chat = _read(_Chat, body)
    usage = chat.usage and Usage(chat.usage.prompt_tokens, chat.usage.completion_tokens)
    choices = sorted(chat.choices, key=lambda choice: choice.index)
    return Reply(chat.id or "", chat.model or "", tuple(map(_completion, choices)), usage or None)


def _read(kind: type[M], body: bytes) -> M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise BadBody(_problem(kind, error)) from None  # pydantic's words quote the body


def read_file_id(body: bytes) -> str:
    """Returns the name that a provider gave to a file. Raises BadBody."""
    return _read(_Named, body).id


def read_batch(body: bytes) -> BatchStatus:
    """Returns what a provider says of a batch. Raises BadBody."""
    return _read(BatchStatus, body)


def read_batches(body: bytes) -> tuple[list[BatchStatus], bool]:
    """Returns a page of a provider's batches, and whether there are more. Raises BadBody."""
    page = _read(_Batches, body)
    return page.data, page.has_more and bool(page.data)


@dataclass(frozen=True)
class BatchAnswer:
    """One line of a batch's output: status and body as the endpoint would have answered, or, with
    status 0, why it was not asked."""

    custom_id: str
    status: int
    body: bytes


def read_batch_answers(body: bytes) -> list[BatchAnswer]:
    """Returns the lines of a batch's output or of its errors. Raises BadBody."""
    return [_batch_answer(_read(_BatchLine, line)) for line in body.split(b"\n") if line.strip()]


def _batch_answer(line: _BatchLine) -> BatchAnswer:
    if line.response is None:
        failure = {"error": line.error.model_dump() if line.error else None}
        return BatchAnswer(line.custom_id, 0, json.dumps(failure).encode())
    return BatchAnswer(
        line.custom_id, line.response.status_code, json.dumps(line.response.body).encode()
    )


def _completion(choice: _Choice) -> Completion:
    content, reason = choice.message.content, choice.finish_reason or ""
    text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
    if not text and choice.message.refusal:
        return Completion(choice.message.refusal, "refusal")
    return Completion(text, reason)


def read_failure(body: bytes) -> tuple[str, str]:
    """Returns the code and the message of an error's body; empty where it has none."""
    try:
        error = _Failure.model_validate_json(body).error
    except ValidationError:
        return "", ""
    if not isinstance(error, _Error):
        return "", error or ""
    return str(error.code or error.type or ""), error.message or ""


def _problem(kind: type[BaseModel], error: ValidationError) -> str:
    first: Any = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return "the body is not whole JSON"
    where = ".".join(map(str, first["loc"])) or "the body"
    return (
        f"the body is no {_WHAT.get(kind, 'answer')} ({where}: {first['type'].replace('_', ' ')})"
    )

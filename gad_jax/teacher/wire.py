"""The wire format: the responses of an OpenAI-compatible API, checked, and what is kept of them."""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from gad_jax.data.sources.rows import is_finished

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Usage:
    """Tokens that were billed."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """One completion. `finish_reason` is stop, length, content_filter, refusal or the server's own
    word. `text` may be empty; the server bills that too."""

    text: str
    finish_reason: str

    @property
    def complete(self) -> bool:
        """Whether the answer is whole: not cut, refused or empty."""
        return is_finished(self.finish_reason) and self.text.strip() != ""


@dataclass(frozen=True)
class Reply:
    """The response to one chat request. `usage` is None where the server does not say."""

    id: str
    model: str
    completions: tuple[Completion, ...]
    usage: Usage | None


class BadResponse(ValueError):
    """A response in another format, or truncated. Its text quotes nothing of the response, which
    may echo the key."""


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
    """A provider's status of a batch."""

    id: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: _Counts | None = None
    errors: _Errors | None = None
    metadata: dict[str, str] | None = None

    @property
    def ended(self) -> bool:
        """Whether the batch is over, and no more responses will come."""
        return self.status in ("completed", "failed", "expired", "cancelled")

    @property
    def done(self) -> int:
        """The number of requests that are processed."""
        counts = self.request_counts
        return counts.completed + counts.failed if counts else 0

    @property
    def problem(self) -> str:
        """Why the whole batch failed, in the provider's words; empty where it does not say."""
        errors = self.errors.data if self.errors else []
        return "; ".join(error.message or str(error.code) for error in errors[:3])


class _Batches(BaseModel):
    data: list[BatchStatus]
    has_more: bool = False


class _LineResponse(BaseModel):
    status_code: int
    body: Any = None


class _BatchLine(BaseModel):
    custom_id: str
    response: _LineResponse | None = None
    error: _Error | None = None


_WHAT: dict[type[BaseModel], str] = {
    _Chat: "chat completion",
    _Named: "file",
    BatchStatus: "batch",
    _Batches: "list of batches",
    _BatchLine: "line of a batch",
}


def read_reply(body: bytes) -> Reply:
    """Returns the reply in the body of a chat completion. Raises BadResponse."""
    chat = _read(_Chat, body)
    usage = chat.usage and Usage(chat.usage.prompt_tokens, chat.usage.completion_tokens)
    choices = sorted(chat.choices, key=lambda choice: choice.index)
    return Reply(chat.id or "", chat.model or "", tuple(map(_completion, choices)), usage or None)


def _read(kind: type[M], body: bytes) -> M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise BadResponse(_problem(kind, error)) from None  # pydantic's text quotes the body


def read_file_id(body: bytes) -> str:
    """Returns the provider's name for an uploaded file. Raises BadResponse."""
    return _read(_Named, body).id


def read_batch(body: bytes) -> BatchStatus:
    """Returns a provider's status of a batch. Raises BadResponse."""
    return _read(BatchStatus, body)


def read_batches(body: bytes) -> tuple[list[BatchStatus], bool]:
    """Returns a page of a provider's batches, and whether there are more. Raises BadResponse."""
    page = _read(_Batches, body)
    return page.data, page.has_more and bool(page.data)


@dataclass(frozen=True)
class BatchResponse:
    """One line of a batch's output: the status and body that the endpoint would have sent. With
    status 0, the body says why the request was not processed."""

    custom_id: str
    status: int
    body: bytes


def read_batch_responses(body: bytes) -> list[BatchResponse]:
    """Returns the lines of a batch's output or of its errors. Raises BadResponse."""
    return [
        _to_batch_response(_read(_BatchLine, line)) for line in body.split(b"\n") if line.strip()
    ]


def _to_batch_response(line: _BatchLine) -> BatchResponse:
    if line.response is None:
        failure = {"error": line.error.model_dump() if line.error else None}
        return BatchResponse(line.custom_id, 0, json.dumps(failure).encode())
    return BatchResponse(
        line.custom_id, line.response.status_code, json.dumps(line.response.body).encode()
    )


def _completion(choice: _Choice) -> Completion:
    content, reason = choice.message.content, choice.finish_reason or ""
    text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
    if not text and choice.message.refusal:
        return Completion(choice.message.refusal, "refusal")
    return Completion(text, reason)


def read_failure(body: bytes) -> tuple[str, str]:
    """Returns code and message of an error response; empty where it has none."""
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

"""The bodies that an endpoint may answer with, and what is kept of them."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from gad_jax.data.sources.rows import FINISHED


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


def read_reply(body: bytes) -> Reply:
    """Returns the reply in the body of a chat completion. Raises BadBody."""
    try:
        chat = _Chat.model_validate_json(body)
    except ValidationError as error:
        raise BadBody(_problem(error)) from None  # pydantic's words quote the body
    usage = chat.usage and Usage(chat.usage.prompt_tokens, chat.usage.completion_tokens)
    choices = sorted(chat.choices, key=lambda choice: choice.index)
    return Reply(chat.id or "", chat.model or "", tuple(map(_completion, choices)), usage or None)


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


def _problem(error: ValidationError) -> str:
    first: Any = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return "the body is not whole JSON"
    where = ".".join(map(str, first["loc"])) or "the body"
    return f"the body is no chat completion ({where}: {first['type'].replace('_', ' ')})"

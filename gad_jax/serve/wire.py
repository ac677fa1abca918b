"""Requests of OpenAI's completions API; what is not supported is refused by name."""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    model_validator,
)

from gad_jax.rollout.sampling import Sampler
from gad_jax.serve import fields
from gad_jax.serve.errors import Refused

MOST_CHOICES = 128
MOST_MESSAGES = 2048
MOST_STOPS = 16
MOST_STOP_TOKENS = 128
LONGEST_STOP = 512
PARTICIPANT = re.compile("[a-zA-Z0-9_-]{1,64}")


def _as_text(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"a part of the type {str(kind)[:64]!r} is not text; send text parts")
        for name in part:
            if name not in ("type", "text", "cache_control", "annotations"):
                raise ValueError(f"a text part with {name[:64]!r} is not supported; leave it out")
        texts.append(part["text"])
    return "".join(texts)


def _as_stops(stop: Any) -> Any:
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise ValueError("not a text or a list of texts")
    if len(stops) > MOST_STOPS:
        raise ValueError(f"{len(stops)} texts; {MOST_STOPS} are the limit")
    if max(map(len, stops), default=0) > LONGEST_STOP:
        raise ValueError(f"a text is longer than {LONGEST_STOP} characters")
    return [one for one in stops if one]


def _none_as_list(value: Any) -> Any:
    return [] if value is None else value


_Tokens = Annotated[list[int], FailFast(), Field(max_length=MOST_STOP_TOKENS)]


class _Message(BaseModel):
    """A turn. Thoughts of earlier answers are taken and left out, as thinking models want it."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: Annotated[str | None, BeforeValidator(_as_text)] = None
    name: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "_Message":
        if self.content is None and self.role != "assistant":
            raise ValueError("the content is missing")
        if self.name is not None and not PARTICIPANT.fullmatch(self.name):
            raise ValueError("a name is up to 64 letters, digits, - and _")
        for name, value in (self.model_extra or {}).items():
            harmless = name in ("reasoning_content", "reasoning", "cache_control", "annotations")
            if not harmless and value not in (None, [], {}, False):
                raise ValueError(f"{name[:64]!r} is not supported in a message; leave it out")
        return self


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class Asked(BaseModel):
    """What both endpoints take: sampling as OpenAI's; top_k, min_p, stop_token_ids and ignore_eos
    as vLLM's."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    seed: int | None = None
    stop: Annotated[list[str], BeforeValidator(_as_stops)] = []
    stop_token_ids: Annotated[_Tokens, BeforeValidator(_none_as_list)] = []
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    def check(self) -> None:
        """Raises Refused for fields that contradict each other."""
        if self.stream_options is not None and not self.stream:
            message = "stream_options is for stream=true alone; leave it out"
            raise Refused(400, message, "invalid_request", "stream_options")

    @property
    def stops(self) -> list[str]:
        """The strings that end an answer."""
        return self.stop

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer; None if the request has no limit."""
        return self.max_tokens

    @property
    def choices(self) -> int:
        """The answers to each prompt."""
        return self.n or 1

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probs of the drawn tokens are returned."""
        return False

    @property
    def sampler(self) -> Sampler:
        """The sampler; without a temperature it is 1, as OpenAI has it."""
        return Sampler(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
        )


class ChatRequest(Asked):
    """A request for chat completions; chat_template_kwargs is vLLM's."""

    messages: Annotated[list[_Message], FailFast()] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer, by its newer name or else its older one."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probs of the drawn tokens are returned."""
        return bool(self.logprobs)

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The messages, with OpenAI's newer role developer as system."""
        roles = {"developer": "system"}
        return [
            {"role": roles.get(one.role, one.role), "content": one.content or ""}
            | ({"name": one.name} if one.name else {})
            for one in self.messages
        ]


def _as_prompts(prompt: Any) -> Any:
    """Returns a list of prompts, each a text or a list of tokens."""

    def is_tokens(value: Any) -> bool:
        return isinstance(value, list) and all(type(token) is int for token in value)

    if isinstance(prompt, str) or (prompt and is_tokens(prompt)):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise ValueError("not a text, a list of tokens, or a list of these")
    if len(prompt) > MOST_CHOICES:
        raise ValueError(f"{len(prompt)} prompts; {MOST_CHOICES} are the limit")
    if not all(isinstance(one, str) or is_tokens(one) for one in prompt):
        raise ValueError("not a text, a list of tokens, or a list of these")
    return prompt


def _as_count(logprobs: Any) -> Any:
    if logprobs is False:
        return None
    if logprobs is None or (type(logprobs) is int and logprobs == 0):
        return logprobs
    raise ValueError("the log-probs of tokens that are not drawn are not computed; use 0 or null")


class CompletionRequest(Asked):
    """A request for completions of plain prompts; add_special_tokens is vLLM's."""

    prompt: Annotated[list[Any], BeforeValidator(_as_prompts)]
    echo: bool | None = None
    logprobs: Annotated[int | None, BeforeValidator(_as_count)] = None
    add_special_tokens: bool | None = None

    def check(self) -> None:
        """Raises Refused for fields that contradict each other, or are not supported together."""
        super().check()
        several = self.choices * len(self.prompt)
        if several > MOST_CHOICES:
            message = f"{several} answers; {MOST_CHOICES} are the limit"
            raise Refused(400, message, "invalid_request", "n")
        if self.echo and self.wants_logprobs:
            message = "echo with logprobs is not supported; leave one of them out"
            raise Refused(400, message, "unsupported", "echo")

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probs of the drawn tokens are returned."""
        return self.logprobs is not None


Kind = TypeVar("Kind", bound=Asked)

_NEUTRAL: dict[type[Asked], dict[str, tuple[Any, ...]]] = {
    ChatRequest: {"echo": (None, False), "add_special_tokens": (None, False)},
    CompletionRequest: {"suffix": (None, "")},
}


def read(body: bytes, form: type[Kind]) -> Kind:
    """Returns the request in an HTTP body. Raises Refused, which says what is wrong with it."""
    try:
        request = form.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        message = f"{where}: {message}" if where else message
        param = str(first["loc"][0]) if first["loc"] else None
        raise Refused(400, message, "invalid_request", param) from None
    neutral = _NEUTRAL[form] | {"best_of": (None, 1, request.choices)}
    fields.check(request.model_extra or {}, form.model_fields, neutral)
    request.check()
    return request

"""Requests and messages of OpenAI's chat completions; what is not supported is refused by name."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gad_jax.base.errors import UserError
from gad_jax.rollout.sampling import Sampler

MOST_CHOICES = 128

# Fields that are accepted at the values which change nothing; other values are not supported.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "top_logprobs": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
}


class _Part(BaseModel):
    type: Literal["text"]
    text: str


def _as_text(content: Any) -> Any:
    if isinstance(content, list):
        return "".join(_Part.model_validate(part).text for part in content)
    return content


class _Message(BaseModel):
    role: str
    content: Annotated[str, BeforeValidator(_as_text)]


class _StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request for chat completions: sampling as OpenAI's; top_k, min_p and
    chat_template_kwargs as vLLM's."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logprobs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        """The strings that end an answer."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def sampler(self) -> Sampler:
        """The sampler; without a temperature it is 1, as OpenAI has it."""
        return Sampler(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
        )

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The messages, with OpenAI's newer role developer as system."""
        roles = {"developer": "system"}
        return [
            {"role": roles.get(one.role, one.role), "content": one.content} for one in self.messages
        ]


def read(body: bytes) -> ChatRequest:
    """Returns the request in an HTTP body. Raises UserError, which says what is wrong with it."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    for name, value in (request.model_extra or {}).items():
        if name in _UNSUPPORTED and value not in _UNSUPPORTED[name]:
            raise UserError(f"{name} is not supported; leave it out")
    return request


def message(content: str, said: str) -> dict[str, Any]:
    """Returns the message of a choice with its thoughts; one that only thinks has no content."""
    if not said:
        return {"role": "assistant", "content": content}
    return {"role": "assistant", "reasoning_content": said, "content": content or None}


def event(
    head: dict[str, Any],
    choice: int,
    delta: dict[str, str],
    logprobs: Any = None,
    reason: str | None = None,
) -> bytes:
    """Returns a server-sent event with what a chunk adds to a choice."""
    one = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return data(head | {"choices": [one]})


def data(content: Any) -> bytes:
    """Returns a server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"

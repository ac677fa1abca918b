"""The wire format: the chat completions of an OpenAI-compatible API, and what is kept of them.

A reply was paid, so only its choices must be readable. Servers differ in everything else: usage,
ids, where a thought stands, whether the text is one text or a list of parts.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gad_jax.data import thoughts
from gad_jax.data.sources.rows import fold_reason, is_finished
from gad_jax.teacher.failures import Failure, failure_in, find_failure

_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates: no training row has them
_LONGEST_NAME = 200

NOT_FINAL = {
    *("error", "failed", "server_error", "internal_error", "network_error", "timeout"),
    *("abort", "aborted", "cancelled", "canceled"),
    *("insufficient_system_resource", "engine_overloaded", "overloaded"),
}
"""Finish reasons of a response that the server broke off; it is requested again."""


_REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_text", "reasoning_details")
_PROMPT_TOKENS = ("prompt_tokens", "input_tokens", "promptTokenCount", "prompt_token_count")
_COMPLETION_TOKENS = (
    *("completion_tokens", "output_tokens", "generated_tokens"),
    *("candidatesTokenCount", "completion_token_count"),
)
_CACHED = ("cache_read_input_tokens", "cache_creation_input_tokens")
"""Anthropic's, which counts them apart from input_tokens."""
_TOTAL = ("total_tokens", "totalTokenCount", "total_token_count")


@dataclass(frozen=True)
class Usage:
    """Tokens that were billed; None where the server does not say."""

    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class Completion:
    """One completion. `finish_reason` is stop, length, content_filter, refusal or the server's own
    word. `text` may be empty; the server bills that too. `reasoning` is the model's thought, which
    is no part of the answer."""

    text: str
    finish_reason: str
    reasoning: str = ""

    @property
    def complete(self) -> bool:
        """Whether the answer is whole: not cut, refused or empty."""
        return is_finished(self.finish_reason) and self.text.strip() != ""


@dataclass(frozen=True)
class Reply:
    """The response to one chat request. `usage` is None where the server does not say. `replaced`
    says whether it had characters that no text can hold, which are U+FFFD now."""

    id: str
    model: str
    completions: tuple[Completion, ...]
    usage: Usage | None
    replaced: bool = False


class BadResponse(ValueError):
    """A response in another format, or truncated. Its text quotes nothing of the response, which
    may echo the key."""


class BrokenOff(BadResponse):
    """A response with status 200 that says in its body that it failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__("the body is an error")
        self.failure = failure


def load(body: bytes) -> Any:
    """Returns the JSON value in a body; bytes that are no UTF-8 become U+FFFD. Raises
    BadResponse."""
    try:
        text = body.decode(json.detect_encoding(body), errors="replace")
        return json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError, MemoryError):
        raise BadResponse("the body is not whole JSON") from None


def _integer(digits: str) -> int | float:
    """Returns a number; Python refuses to read integers of thousands of digits."""
    return int(digits) if len(digits) <= _LONGEST_NAME else math.inf


def read_reply(body: bytes) -> Reply:
    """Returns the reply in the body of a chat completion. Raises BadResponse, or BrokenOff where
    the body says why there is no completion."""
    chat = load(body)
    if isinstance(chat, list) and len(chat) == 1:  # as Gemini wraps what it sends
        chat = chat[0]
    fields = chat if isinstance(chat, dict) else {}
    failure = find_failure(fields)
    try:
        choices = _choices(fields)
    except BadResponse:
        if failure is None:
            raise
        raise BrokenOff(failure) from None
    completions = tuple(map(_completion, choices))
    for choice, completion in zip(choices, completions, strict=True):
        if fold_reason(completion.finish_reason) in NOT_FINAL:
            raise BrokenOff(find_failure(choice) or failure or _reason_of(choice))
    if failure and not any(one.text or one.reasoning for one in completions):
        raise BrokenOff(failure)
    texts = [text for one in completions for text in (one.text, one.reasoning)]
    return Reply(
        _clean_name(fields.get("id")),
        _clean_name(fields.get("model")),
        tuple(
            Completion(_clean(c.text), c.finish_reason, _clean(c.reasoning)) for c in completions
        ),
        read_usage(fields.get("usage", fields.get("usageMetadata"))),
        replaced=any(map(_NO_TEXT.search, texts)) or not _is_utf8(body),
    )


def read_failure(body: bytes) -> Failure:
    """Returns what an error response says; empty where its body is no JSON."""
    try:
        return failure_in(load(body))
    except BadResponse:
        return Failure("", "")


def _reason_of(choice: Mapping[str, Any]) -> Failure:
    """Returns what the finish reason of a broken choice says; SGLang's is an object."""
    reason = choice.get("finish_reason")
    return failure_in(
        reason if isinstance(reason, dict) else {"message": f"finish_reason {reason}"}
    )


def _choices(chat: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the choices in the order of their index; those that are none are left out."""
    given = chat.get("choices")
    if not isinstance(given, list):
        raise _bad("choices", "missing" if given is None else "no list")
    if not given:
        raise _bad("choices", "too short")
    problem, found = None, []
    for place, choice in enumerate(given):
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict) or (isinstance(choice, dict) and "text" in choice):
            index = choice.get("index")
            found.append((index if type(index) is int else place, place, choice))
        else:
            problem = problem or _bad(f"choices.{place}.message", "no object")
    if not found:
        assert problem is not None
        raise problem
    return [choice for _, _, choice in sorted(found, key=lambda one: one[:2])]


def _bad(where: str, what: str) -> BadResponse:
    return BadResponse(f"the body is no chat completion ({where}: {what})")


def _completion(choice: Mapping[str, Any]) -> Completion:
    message = choice.get("message")
    message = message if isinstance(message, dict) else {"content": choice.get("text")}
    text, thought = _parts(message.get("content"))
    said = [thought, *(_flat(message.get(name)) for name in _REASONING)]
    # Some servers send a thought under two names.
    reasoning = "\n\n".join(dict.fromkeys(one for one in said if one.strip()))
    reason = _word(choice.get("finish_reason", choice.get("finishReason", "")))
    parts = thoughts.split_teacher(text)
    reasoning = "\n\n".join(one for one in (reasoning, parts.thoughts) if one)
    text = parts.answer if parts.finished else ""
    refusal = _flat(message.get("refusal"))
    if not text and refusal:
        return Completion(refusal, "refusal", reasoning)
    return Completion(text, reason, reasoning)


def _parts(content: Any) -> tuple[str, str]:
    """Returns the text and the thoughts of a message's content: a text, a part or a list of both.
    Parts are texts, or objects whose type says what they are."""
    texts, inside = [], []
    for part in content if isinstance(content, list) else [content]:
        kind = str(part.get("type", "text")) if isinstance(part, dict) else "text"
        if "think" in kind or "reason" in kind:
            inside.append(_flat(part))
        elif "tool" not in kind and "function" not in kind:
            texts.append(_flat(part))
    return "".join(texts), "".join(inside)


def _flat(value: Any, depth: int = 0) -> str:
    """Returns the text in a value: itself, or that of its parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth < 5:
        return "".join(_flat(part, depth + 1) for part in value)
    if isinstance(value, dict):
        names = ("text", "content", "thinking", "reasoning", "summary", "refusal", "value")
        return next((_flat(value[name], depth + 1) for name in names if value.get(name)), "")
    return "" if value is None or isinstance(value, bool | list) else json.dumps(value)


def _word(value: Any) -> str:
    """Returns a finish reason. SGLang's own form is an object with a type."""
    if isinstance(value, dict):
        value = value.get("type", "")
    return _clean_name(value)


def _clean_name(value: Any) -> str:
    """Returns an id, a model's name or a finish reason; numbers as they are written."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return _clean(str(value))[:_LONGEST_NAME]


def _clean(text: str) -> str:
    return _NO_TEXT.sub("\ufffd", text)


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode(json.detect_encoding(body))
    except UnicodeDecodeError:
        return False
    return True


def read_usage(usage: Any) -> Usage | None:
    """Returns what a reply says that it used, by the names of any API; None if nothing is
    readable. A count that is missing follows from the total, and so do the tokens of thoughts that
    an API counts there alone."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage, _PROMPT_TOKENS), _count(usage, _COMPLETION_TOKENS)
    total = _count(usage, _TOTAL)
    if prompt is not None and "input_tokens" in usage:
        prompt += sum(_count(usage, (name,)) or 0 for name in _CACHED)
    if prompt is not None and total is not None and total > prompt:
        completion = max(completion or 0, total - prompt)
    if completion is not None and prompt is None and total is not None and total > completion:
        prompt = total - completion
    return None if prompt is None and completion is None else Usage(prompt, completion)


def _count(usage: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """Returns the first of these counts that is one: an integer, a fraction (rounded up) or such a
    number as text."""
    for name in names:
        value = usage.get(name)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", value.strip()):
            value = float(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15:
            return math.ceil(value)
    return None

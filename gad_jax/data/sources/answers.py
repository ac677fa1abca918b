"""The teacher's answers in a column: text, several texts, messages, or an API's response."""

from typing import Any, NamedTuple

from gad_jax.data.sources import conversations
from gad_jax.data.sources.conversations import Turn
from gad_jax.data.sources.fields import from_json
from gad_jax.data.sources.rows import Invalid, is_finished, kind, text

_NEEDED = "a text or a list of texts"


class Answer(NamedTuple):
    """One answer; `reason` is why it ended, None where the API does not say."""

    text: str
    reason: str | None = None

    @property
    def complete(self) -> bool:
        """Whether it ended by itself."""
        return is_finished(self.reason)


def is_responses(value: Any) -> bool:
    """Returns whether a value is the list of an API's choices or candidates."""
    return isinstance(value, list) and any(
        isinstance(one, dict) and {"message", "content", "text"} & set(one) for one in value
    )


def read(name: str, value: Any, prompt: list[Turn]) -> tuple[list[Turn], list[Answer]]:
    """Returns the prompt, which messages in the column may lengthen, and the answers.

    Raises Invalid.
    """
    messages = from_json(value)
    if conversations.are_messages(messages):
        return _of_messages(name, messages, prompt)
    if isinstance(value, dict):
        return prompt, _of_object(name, value)
    if name in ("choices", "candidates"):
        return prompt, [_choice(name, choice) for choice in value]
    return prompt, of_texts(name, value)


def of_texts(name: str, value: Any) -> list[Answer]:
    """Returns the answers of a text or a list of texts; raises Invalid."""
    if isinstance(value, list):
        if not value:
            raise Invalid(f"{name!r} is empty")
        return [Answer(text(repr(name), one, _NEEDED, columns=True)) for one in value]
    return [Answer(text(repr(name), value, _NEEDED, columns=True))]


def _of_messages(name: str, value: Any, prompt: list[Turn]) -> tuple[list[Turn], list[Answer]]:
    *earlier, last = conversations.read(name, value)
    if last["role"] != "assistant":
        raise Invalid(f"{name!r} does not end with an assistant message")
    if conversations.is_left_out(value):
        raise Invalid(f"the last message in {name!r} is marked as not to be trained on")
    answer = [Answer(last["content"])]
    if not earlier or not prompt or earlier[0]["role"] == "assistant":
        return [*prompt, *earlier], answer
    # The column holds the whole conversation, and the prompt stands in another one once more.
    asked = [turn["content"].strip() for turn in prompt if turn["role"] != "system"]
    held = [turn["content"].strip() for turn in earlier]
    if not all(one in held for one in asked):
        raise Invalid(f"{name!r} holds another conversation than the prompt", columns=True)
    lead = [] if earlier[0]["role"] == "system" else prompt[: prompt[0]["role"] == "system"]
    return [*lead, *earlier], answer


def _of_object(name: str, value: dict[str, Any]) -> list[Answer]:
    """Returns the answers in a message, or in the response of an API to one request."""
    body: Any = value.get("body") if isinstance(value.get("body"), dict) else value
    for key in ("choices", "candidates"):
        if is_responses(body.get(key)):
            return [_choice(f"{name}.{key}", choice) for choice in body[key]]
    if {"role", "from"} & set(body) or "stop_reason" in body:
        return [_choice(name, {"message": body, "finish_reason": body.get("stop_reason")})]
    raise Invalid(
        f"{name!r} is not {_NEEDED}",
        f" but {kind(value)} with the fields {', '.join(map(str, value)) or 'none'}",
        columns=True,
    )


def _choice(name: str, choice: Any) -> Answer:
    """Returns one choice of a chat completion, or one candidate of Gemini."""
    if not isinstance(choice, dict):
        raise Invalid(f"{name!r} is not {_NEEDED}", f" but holds {kind(choice)}")
    reason = choice.get("finish_reason", choice.get("finishReason"))
    reason = reason if isinstance(reason, str) else None
    message = next((choice[k] for k in ("message", "content", "text") if k in choice), None)
    if isinstance(message, dict):
        if message.get("refusal") and not message.get("content"):
            return Answer("", "refusal")
        if message.get("tool_calls") or message.get("function_call"):
            return Answer("", "tool_calls")
        keys = ("content", "value", "parts", "text")
        message = next((message[key] for key in keys if key in message), None)
    label = f"an answer in {name!r}"
    content = conversations.content_of(label, message) if message is not None else ""
    if not is_finished(reason) and not content.strip():
        return Answer("", reason)
    return Answer(text(label, content), reason)

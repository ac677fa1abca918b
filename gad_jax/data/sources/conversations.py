"""Turns of a conversation, in the forms in which data sets spell them.

A turn is {"role", "content"} as OpenAI has it, or {"from", "value"} as ShareGPT. Roles have many
names. Earlier turns also come as pairs, or as one text with a name before each turn.
"""

import re
from typing import Any

from gad_jax.data.chat import ROLES
from gad_jax.data.sources.fields import from_json
from gad_jax.data.sources.rows import Invalid, kind, shortened, text, whole_text

Turn = dict[str, str]

_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": (
        *("assistant", "gpt", "chatgpt", "gpt4", "gpt-4", "gpt-3.5", "bard", "bing", "claude"),
        *("gemini", "palm", "llama", "model", "bot", "chatbot", "ai", "llm"),
    ),
}
_ROLE = {alias: role for role, aliases in _ROLES.items() for alias in aliases}
_TOOLS = (
    *("tool", "tools", "tool_call", "tool_calls", "tool_response", "tool-call", "observation"),
    *("function", "function_call", "function-call", "function_response", "ipython"),
)
_CALLS = ("tool_calls", "function_call")
_MEDIA = ("images", "image", "audio", "videos", "video")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thoughts")
_THOUGHT_PARTS = ("thinking", "reasoning", "redacted_thinking")
_ALTERNATING = ("data", "conversations", "conversation", "dialogue", "dialog", "history")
_PAIRS = (
    *(("user", "assistant"), ("human", "assistant"), ("human", "bot"), ("prompt", "response")),
    *(("question", "answer"), ("input", "output"), ("query", "response")),
    *(("instruction", "output"), ("instruction", "response"), ("human", "gpt")),
)
_TRANSCRIPTS = (
    re.compile(r"(?:^|\n\n)\s*(Human|Assistant):"),
    re.compile(r"(?:^|\s*)### ?(Human|Assistant):"),
    re.compile(r"(?:^|\n)\s*<(human|bot)>:"),
)


def read(key: str, value: Any) -> list[Turn]:
    """Returns the turns in a column, with the roles system, user and assistant; raises Invalid."""
    value = from_json(value)
    if isinstance(value, str) and (turns := transcript(value)):
        return turns
    if isinstance(value, dict):
        value = _transposed(value)
    if not isinstance(value, list):
        raise Invalid(f"{key!r} is not a list of messages", f" but {kind(value)}", columns=True)
    if not value:
        raise Invalid(f"{key!r} is empty")
    if key in _ALTERNATING and len(value) > 1 and all(isinstance(item, str) for item in value):
        name = f"the content of a message in {key!r}"
        return [turn(ROLES[1 + n % 2], text(name, item)) for n, item in enumerate(value)]
    return [one for message in value for one in _read_message(key, message)]


def are_messages(value: Any) -> bool:
    """Returns whether a value is a list with messages in it."""
    return isinstance(value, list) and any(
        isinstance(one, dict) and {"role", "from"} & set(one) for one in value
    )


def turn(role: str, content: str) -> Turn:
    """Returns a turn as all readers write it."""
    return {"role": role, "content": content}


def _transposed(value: dict[str, Any]) -> Any:
    """Returns the messages of an object of lists, as `datasets` may give them."""
    lists = list(value.values())
    same = all(isinstance(each, list) and len(each) == len(lists[0]) for each in lists)
    if not lists or not same or not {"role", "from"} & set(value):
        return value
    return [dict(zip(value, items, strict=True)) for items in zip(*lists, strict=True)]


def _read_message(key: str, message: Any) -> list[Turn]:
    if not isinstance(message, dict):
        raise Invalid(f"{key!r} holds something else than messages", f": {kind(message)}")
    if not {"role", "from"} & set(message) and (turns := _pair(key, message)):
        return turns
    given = message.get("role", message.get("from"))
    role = _ROLE.get(given.strip().lower()) if isinstance(given, str) else None
    if role is None:
        tools = " (tools are not supported)" if _is_tool(given) else ""
        raise Invalid(
            f"{key!r} has an unknown role",
            f": {shortened(given)} is not one of {', '.join(ROLES)}{tools}",
        )
    for name in (*_CALLS, *_MEDIA):
        if message.get(name):
            raise Invalid(f"{key!r} has {name.replace('_', ' ')}", ", and only text is read")
    name = f"the content of a message in {key!r}"
    held = next((message[k] for k in ("content", "value", "text", "parts") if k in message), None)
    content = content_of(name, held)
    # An empty system message is common, and some templates write another one in its place.
    return [turn(role, whole_text(name, content) if role == "system" else text(name, content))]


def _is_tool(role: Any) -> bool:
    return isinstance(role, str) and role.strip().lower() in _TOOLS


def _pair(key: str, message: dict[str, Any]) -> list[Turn]:
    """Returns question and answer of an object that holds both; none for another object."""
    for question, answer in _PAIRS:
        if {question, answer} <= set(message):
            return [
                turn("user", text(f"{question!r} in {key!r}", message[question])),
                turn("assistant", text(f"{answer!r} in {key!r}", message[answer])),
            ]
    return []


def content_of(name: str, value: Any) -> Any:
    """Returns the text of a message's content, which may be a list of parts; raises Invalid."""
    if isinstance(value, dict) and {"parts", "text"} & set(value):
        return content_of(name, value.get("parts", value.get("text")))
    if not isinstance(value, list) or not all(isinstance(part, str | dict) for part in value):
        if isinstance(value, str) or value is None:
            return value if value is not None else text(name, None)
        return text(name, value)
    texts = []
    for part in value:
        if isinstance(part, dict):
            said = part.get("type")
            if said in _THOUGHT_PARTS:
                continue
            if said not in (None, "text", "input_text", "output_text") or not isinstance(
                part.get("text"), str
            ):
                raise Invalid(f"{name} has a part that is not text", f" but {shortened(said)}")
            part = part["text"]
        texts.append(part)
    return "".join(texts)


def left_out(value: Any) -> set[str]:
    """Returns the fields of a conversation's messages that are not used: thoughts, and speakers'
    names."""
    messages = value if isinstance(value, list) else []
    return {
        name
        for message in messages
        if isinstance(message, dict)
        for name in (*_THOUGHTS, "name")
        if message.get(name)
    }


def is_left_out(value: Any) -> bool:
    """Returns whether the last message says that it is not to be trained on."""
    last = value[-1] if isinstance(value, list) and value else None
    return isinstance(last, dict) and any(
        last.get(name) is not None and last[name] in (0, False)
        for name in ("weight", "train", "loss")
    )


def history(key: str, value: Any) -> list[Turn]:
    """Returns the earlier turns in a column: pairs of question and answer, or messages."""
    value = from_json(value)
    pairs = isinstance(value, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in value
    )
    if not pairs:
        return read(key, value)
    name = f"a turn in {key!r}"
    return [turn(ROLES[1 + n], text(name, item)) for pair in value for n, item in enumerate(pair)]


def transcript(value: str) -> list[Turn]:
    """Returns the turns of a text with `Human:` and `Assistant:` before them; none for another."""
    for pattern in _TRANSCRIPTS:
        begin, *parts = pattern.split(value)
        if begin.strip() or len(parts) < 2 or parts[0].lower() != "human":
            continue
        roles = ["user" if name.lower() == "human" else "assistant" for name in parts[::2]]
        turns = [turn(role, part.strip()) for role, part in zip(roles, parts[1::2], strict=True)]
        if not turns[-1]["content"]:
            turns.pop()  # "Assistant:" at the end asks for the answer
        return turns if turns and all(one["content"] for one in turns) else []
    return []

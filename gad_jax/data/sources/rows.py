"""A row of teacher text, and the checks that turn a raw record into one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gad_jax.data.chat import ROLES


class Invalid(Exception):
    """What is wrong with one record. `reason` is the same for all records of its kind."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason + detail)
        self.reason = reason


Record = tuple[str, Any]
"""The place of a record (`train.jsonl:17`), and its value: Invalid if it could not be read."""


FINISHED = ("stop", "end_turn", "eos", "")
"""Finish reasons of a response that the teacher ended itself; some servers send an empty one."""


@dataclass(frozen=True)
class Row:
    """One prompt with the teacher's responses.

    `id` names the row in messages and reports: the record's id, or its place. It is unique in a
    file.
    """

    messages: tuple[dict[str, str], ...]
    responses: tuple[str, ...]
    id: str


@dataclass(frozen=True)
class Rows:
    """The valid rows of a source, and how many were skipped for which reason.

    `unfinished` counts the collected responses that were dropped: cut, refused or empty ones.
    """

    name: str
    rows: tuple[Row, ...]
    skipped: dict[str, int]
    skip_invalid: bool = False
    unfinished: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def parse(where: str, record: Any, need_response: bool = True) -> Row:
    """Returns the row of a raw record; raises Invalid."""
    if isinstance(record, Invalid):
        raise record
    if not isinstance(record, dict):
        raise Invalid("not a JSON object", f" but {_kind(record)}")
    return Row(
        _messages(record),
        _responses(record.get("teacher_response"), need_response),
        _id(record.get("id", record.get("question_id")), where),
    )


def is_unfinished(record: Any) -> bool:
    """Returns whether a record is a collected response that was cut, refused or empty."""
    if not isinstance(record, dict) or not isinstance(record.get("finish_reason"), str):
        return False
    response = record.get("teacher_response")
    return record["finish_reason"] not in FINISHED or (
        isinstance(response, str) and not response.strip()
    )


def collected_key(record: Any) -> str | None:
    """Returns the key that all samples of one collected prompt share; None for other records."""
    if not isinstance(record, dict) or not isinstance(record.get("sample"), int):
        return None
    return record["key"] if isinstance(record.get("key"), str) else None


def _messages(record: dict[str, Any]) -> tuple[dict[str, str], ...]:
    """Returns the conversation under the first of `messages`, `content`, `instruction`, `prompt`,
    `turns` and `text` that the record has.

    Dolly, SelfInst and Alpaca have `instruction`; their `prompt` is the same text in a wrapper.
    Vicuna has `turns` or `text`.
    """
    for key in ("messages", "content"):
        if record.get(key) is not None:
            return _conversation(key, record[key])
    for key in ("instruction", "prompt", "turns", "text"):
        value = record.get(key)
        if value is not None:
            if key == "turns":  # a later turn would need the student's answer to this one
                value = value[0] if isinstance(value, list) and value else value
            text = _text(repr(key), value)
            given = _given_input(record) if key == "instruction" else ""
            return ({"role": "user", "content": f"{text}\n\n{given}" if given else text},)
    raise Invalid("no 'messages', 'content' or 'prompt'")


def _given_input(record: dict[str, Any]) -> str:
    """Returns the text that an instruction is about, or an empty one.

    That is Alpaca's `input`, Dolly's `context`, or the input of SelfInst's first instance.
    """
    instances = record.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    for holder, key in ((record, "input"), (record, "context"), (first, "input")):
        value = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(value, str) and value.strip():
            return _text(repr(key), value)
    return ""


def _conversation(key: str, messages: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list):
        raise Invalid(f"{key!r} is not a list of messages", f" but {_kind(messages)}")
    if not messages:
        raise Invalid(f"{key!r} is empty")
    for message in messages:
        if not isinstance(message, dict):
            raise Invalid(f"{key!r} holds something else than messages", f": {_kind(message)}")
        if message.get("role") not in ROLES:
            raise Invalid(
                f"{key!r} has an unknown role",
                f": {_shortened(message.get('role'))} is not one of {', '.join(ROLES)}",
            )
    if messages[-1]["role"] != "user":
        raise Invalid(f"{key!r} does not end with a user message")
    name = f"the content of a message in {key!r}"
    return tuple(
        {"role": message["role"], "content": _text(name, message.get("content"))}
        for message in messages
    )


def _responses(response: Any, needed: bool) -> tuple[str, ...]:
    if response is None:
        if needed:
            raise Invalid("no 'teacher_response'")
        return ()
    if isinstance(response, list):
        if not response:
            raise Invalid("'teacher_response' is empty")
        return tuple(
            _text("'teacher_response'", text, "a text or a list of texts") for text in response
        )
    return (_text("'teacher_response'", response, "a text or a list of texts"),)


def _id(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return _text("'id'", value)
    return where


def _text(name: str, value: Any, needed: str = "a text") -> str:
    if not isinstance(value, str):
        raise Invalid(f"{name} is not {needed}", f" but {_kind(value)}")
    if not value.strip():
        raise Invalid(f"{name} is empty")
    if "\0" in value:
        raise Invalid(f"{name} has a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise Invalid(f"{name} has a lone surrogate", f" (U+{code:04X})") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "nothing"
    return names.get(type(value), "a number" if isinstance(value, int | float) else "binary data")


def _shortened(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:39]}…"

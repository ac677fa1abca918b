"""A row of teacher text, and the checks of its parts. How a record becomes one is in `formats`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Invalid(Exception):
    """What is wrong with one record. `reason` is the same for all records of its kind.

    `columns` says that the names of its columns are at fault, so probably those of every row;
    `advice` is what to do then, if not to name the columns by flags.
    """

    def __init__(
        self, reason: str, detail: str = "", *, columns: bool = False, advice: str = ""
    ) -> None:
        super().__init__(reason + detail)
        self.reason = reason
        self.columns = columns
        self.advice = advice


Record = tuple[str, Any]
"""The place of a record (`train.jsonl:17`), and its value: Invalid if it could not be read."""


FINISHED = (
    *("", "stop", "end_turn", "eos", "eos_token", "stop_sequence", "stop_token", "stop_string"),
    *("complete", "completed", "done", "finished", "finish", "success", "unspecified"),
)
"""Finish reasons of a response that the teacher ended itself; some servers send an empty one."""

UNFINISHED = (
    *("length", "max_tokens", "max_output_tokens", "max_new_tokens", "max_length", "model_length"),
    *("model_context_window_exceeded", "context_length_exceeded", "token_limit", "truncated"),
    *("content_filter", "content_filtered", "refusal", "refused", "safety", "sensitive"),
    *("recitation", "blocklist", "prohibited_content", "spii", "image_safety", "language"),
    *("guardrail_intervened", "flagged", "blocked", "moderation", "error_toxic"),
    *("error", "failed", "error_limit", "network_error", "insufficient_system_resource"),
    *("abort", "aborted", "cancelled", "canceled", "user_cancel", "timeout", "incomplete"),
    *("tool_calls", "tool_call", "tool_use", "function_call", "malformed_function_call"),
    *("pause_turn", "repetition", "other"),
)
"""Finish reasons of a response that was cut, refused or broken off, or that calls a tool."""


def fold_reason(reason: str) -> str:
    """Returns a finish reason as the lists above spell it: `MAX_TOKENS` → `max_tokens`."""
    folded = reason.strip().lower().replace("-", "_").replace(" ", "_")
    return folded.removeprefix("finish_reason_")


def is_finished(reason: Any) -> bool:
    """Returns whether a response ended by itself: all but the known bad finish reasons."""
    return not isinstance(reason, str) or fold_reason(reason) not in UNFINISHED


@dataclass(frozen=True)
class Row:
    """One prompt with the teacher's responses.

    `id` names the row in messages and reports: the record's id, or its place. It is unique in a
    file. `complete` says of each response whether it ended by itself; empty means that all did.
    `rejected` are answers that the responses are preferred to, where they were asked for.
    """

    messages: tuple[dict[str, str], ...]
    responses: tuple[str, ...]
    id: str
    complete: tuple[bool, ...] = ()
    rejected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.complete:
            object.__setattr__(self, "complete", (True,) * len(self.responses))


@dataclass(frozen=True)
class Rows:
    """The valid rows of a source, and how many were skipped for which reason.

    `unfinished` counts the collected responses that were dropped: cut, refused or empty ones.
    `notes` are sentences for the user: as which format the rows were read, and what was not used.
    """

    name: str
    rows: tuple[Row, ...]
    skipped: dict[str, int]
    skip_invalid: bool = False
    unfinished: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def conversation_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Returns a conversation as one text, with the role before each message but the last."""
    *earlier, last = messages
    return "\n\n".join([*(f"{m['role']}: {m['content']}" for m in earlier), last["content"]])


def finish_reason(record: Any) -> str | None:
    """Returns why a record's response ended, in the server's words; None if it does not say."""
    if isinstance(record, dict):
        for name in ("finish_reason", "stop_reason", "finishReason"):
            if isinstance(record.get(name), str):
                return record[name]
    return None


def is_unfinished(record: Any) -> bool:
    """Returns whether a record is a collected response that was cut, refused or empty."""
    reason = finish_reason(record)
    if reason is None:
        return False
    response = record.get("teacher_response")
    return not is_finished(reason) or (isinstance(response, str) and not response.strip())


def collected_key(record: Any) -> str | None:
    """Returns the key that all samples of one collected prompt share; None for other records."""
    if not isinstance(record, dict) or not isinstance(record.get("sample"), int):
        return None
    return record["key"] if isinstance(record.get("key"), str) else None


def text(name: str, value: Any, needed: str = "a text", *, columns: bool = False) -> str:
    """Returns the value if it is a text that can be trained on; raises Invalid.

    `columns` says that the value is a whole column, so that one of another type is the wrong one.
    """
    if not isinstance(value, str):
        raise Invalid(f"{name} is not {needed}", f" but {kind(value)}", columns=columns)
    if not value.strip():
        raise Invalid(f"{name} is empty")
    return whole_text(name, value)


def whole_text(name: str, value: str) -> str:
    """Returns the text, which may be empty; raises Invalid for one that no tokenizer takes."""
    if "\0" in value:
        raise Invalid(f"{name} has a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise Invalid(f"{name} has a lone surrogate", f" (U+{code:04X})") from None
    return value


def is_blank(value: Any) -> bool:
    """Returns whether a value says nothing: null, blank text, or an empty list or object."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


def kind(value: Any) -> str:
    """Returns what a value is, in words: `a list`."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "nothing"
    return names.get(type(value), "a number" if isinstance(value, int | float) else "binary data")


def shortened(value: Any) -> str:
    """Returns the value as Python writes it, at most 40 characters."""
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"

"""The questions: each distinct request once per sample, with a key that hashes its content."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gad_jax.data.sources.rows import Row

Messages = tuple[dict[str, str], ...]

_TOKENS_AROUND_A_MESSAGE = 16
"""More than any chat template in use adds to a message."""


@dataclass(frozen=True)
class Teacher:
    """The model and how it is asked: all that a response depends on, apart from the conversation.

    `system` leads conversations that have no system message. `parameters` are the API's, without
    `n`.
    """

    model: str
    system: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One sample of one conversation. The student sees `messages`, the teacher gets `sent`."""

    key: str
    sample: int
    row: str
    messages: Messages
    sent: Messages

    @property
    def idempotency_key(self) -> str:
        """The same in every run: a server that honours it bills a response once."""
        return hashlib.sha256(f"{self.key} {self.sample}".encode()).hexdigest()


def from_rows(rows: Iterable[Row], teacher: Teacher, samples: int) -> list[Question]:
    """Returns the questions of all rows, first samples first, so that a spent budget leaves most
    prompts with a response. Rows with the same conversation are one question."""
    firsts: dict[str, Question] = {}
    for row in rows:
        lead = [{"role": "system", "content": teacher.system}] if teacher.system else []
        has_own = row.messages[0]["role"] == "system"
        sent = row.messages if has_own else (*lead, *row.messages)
        key = request_key(teacher, sent)
        firsts.setdefault(key, Question(key, 0, row.id, row.messages, sent))
    return [
        Question(first.key, sample, first.row, first.messages, first.sent)
        for sample in range(samples)
        for first in firsts.values()
    ]


def request_key(teacher: Teacher, sent: Messages) -> str:
    """Returns a sha256 of what is sent. The base URL is left out, so that the same model at another
    address is not paid again."""
    body = {**teacher.parameters, "model": teacher.model, "messages": sent}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def most_prompt_tokens(messages: Iterable[Mapping[str, str]]) -> int:
    """Returns an upper bound on a conversation's tokens: a token has at least one byte."""
    return sum(len(m["content"].encode()) + _TOKENS_AROUND_A_MESSAGE for m in messages)

"""What is asked: each distinct request once per sample, under a name that its content decides."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gad_jax.data.sources.rows import Row

Messages = tuple[dict[str, str], ...]

_TOKENS_AROUND_A_MESSAGE = 16
"""More than any chat template in use writes around one."""


@dataclass(frozen=True)
class Teacher:
    """Whom a question is put to, and how: all that an answer depends on beside the conversation.

    `system` leads conversations that have no system message of their own; `parameters` are the
    API's, without `n`.
    """

    model: str
    system: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One sample of one conversation. `messages` are the student's, `sent` the teacher's."""

    key: str
    sample: int
    row: str
    messages: Messages
    sent: Messages

    @property
    def idempotency_key(self) -> str:
        """The same in every run, so that a server that honours it bills an answer once."""
        return hashlib.sha256(f"{self.key} {self.sample}".encode()).hexdigest()


def ask_all(rows: Iterable[Row], teacher: Teacher, samples: int) -> list[Question]:
    """Returns the questions of all rows, first samples first: a budget that runs out leaves most
    prompts with an answer. Rows with the same conversation are one question."""
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
    """Returns a sha256 of what is sent. The base URL is not part of it: the same model behind
    another address is not paid again."""
    body = {**teacher.parameters, "model": teacher.model, "messages": sent}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def most_prompt_tokens(messages: Iterable[Mapping[str, str]]) -> int:
    """Returns a bound on the tokens of a conversation for any tokenizer: a token has a byte."""
    return sum(len(m["content"].encode()) + _TOKENS_AROUND_A_MESSAGE for m in messages)

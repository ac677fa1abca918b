"""Responses as servers send them, and those that are none."""

import json
from typing import Any

import pytest

from gad_jax.teacher.wire import (
    BadResponse,
    Completion,
    Usage,
    read_batch,
    read_batch_responses,
    read_failure,
    read_reply,
)


def body(**fields: Any) -> bytes:
    message = {"role": "assistant", "content": "text"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "r", "model": "m", "choices": [choice]} | fields).encode()


def test_a_reply_is_read() -> None:
    reply = read_reply(body(usage={"prompt_tokens": 3, "completion_tokens": 4}, extra=1))
    assert (reply.id, reply.model, reply.usage) == ("r", "m", Usage(3, 4))
    assert reply.completions == (Completion("text", "stop"),)
    assert read_reply(body()).usage is None
    parts = {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    refusal = {"content": None, "refusal": "I cannot."}
    choices = [{"index": 1, "message": refusal}, {"index": 0, "message": parts}]
    found = read_reply(body(choices=choices)).completions
    assert found == (Completion("ab", ""), Completion("I cannot.", "refusal"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<html>secret</html>", "the body is not whole JSON"),
        (body()[:-9], "the body is not whole JSON"),
        (body(choices=[]), "the body is no chat completion (choices: too short)"),
        (b'{"choices": [{"message": "secret"}]}', "no chat completion (choices.0.message: "),
    ],
)
def test_a_bad_response_is_named_and_not_quoted(content: bytes, says: str) -> None:
    with pytest.raises(BadResponse) as bad:
        read_reply(content)
    assert says in str(bad.value)
    assert "secret" not in str(bad.value)


def test_only_whole_answers_are_complete() -> None:
    assert Completion("text", "stop").complete
    assert not Completion("text", "length").complete
    assert not Completion(" ", "stop").complete
    assert not Completion("text", "content_filter").complete


def test_a_failure_has_code_and_message() -> None:
    assert read_failure(b'{"error": {"code": 5, "message": "m"}}') == ("5", "m")
    assert read_failure(b'{"error": {"type": "t"}}') == ("t", "")
    assert read_failure(b'{"error": "text"}') == ("", "text")
    assert read_failure(b"not JSON") == read_failure(b"{}") == ("", "")


def test_a_batch_has_a_status_and_a_line_per_request() -> None:
    counts = {"completed": 2, "failed": 1}
    status = read_batch(
        json.dumps({"id": "b", "status": "completed", "request_counts": counts}).encode()
    )
    assert (status.ended, status.done, status.problem) == (True, 3, "")
    assert not read_batch(b'{"id": "b", "status": "in_progress"}').ended
    lines = [
        {"custom_id": "1", "response": {"status_code": 200, "body": {"x": 1}}},
        {"custom_id": "2", "error": {"code": "expired", "message": "Late."}},
    ]
    first, second = read_batch_responses(b"\n".join(json.dumps(line).encode() for line in lines))
    assert (first.custom_id, first.status, json.loads(first.body)) == ("1", 200, {"x": 1})
    assert (second.custom_id, second.status) == ("2", 0)
    assert read_failure(second.body) == ("expired", "Late.")

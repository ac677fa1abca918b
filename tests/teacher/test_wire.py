"""Responses as servers send them, and those that are none."""

import json
from typing import Any

import pytest

from gad_jax.teacher.wire import (
    BadResponse,
    BrokenOff,
    Completion,
    Usage,
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


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, None),
        ({}, None),
        ("many", None),
        ([1], None),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, None),
        ({"prompt_tokens": -1, "completion_tokens": True}, None),
        ({"prompt_tokens": 1e400, "completion_tokens": 10**30}, None),
        ({"total_tokens": 9}, None),
        ({"prompt_tokens": 5, "completion_tokens": None, "total_tokens": 5}, (5, None)),
        ({"prompt_tokens": 5}, (5, None)),
        ({"prompt_tokens": 5, "total_tokens": 9}, (5, 4)),
        ({"completion_tokens": 4, "total_tokens": 9}, (5, 4)),
        ({"input_tokens": 5, "output_tokens": 4}, (5, 4)),
        ({"input_tokens": 5, "output_tokens": 4, "cache_read_input_tokens": 100}, (105, 4)),
        ({"prompt_tokens": 5.0, "completion_tokens": 3.2}, (5, 4)),
        ({"prompt_tokens": "5", "completion_tokens": "4"}, (5, 4)),
        ({"promptTokenCount": 5, "candidatesTokenCount": 4}, (5, 4)),
        # Thoughts that are in the total alone.
        ({"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 109}, (5, 104)),
        ({"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 8}, (5, 4)),
    ],
)
def test_any_usage_is_read_as_far_as_it_can_be(usage: Any, counts: Any) -> None:
    reply = read_reply(body(usage=usage))
    assert reply.usage == (counts and Usage(*counts))
    assert reply.completions == (Completion("text", "stop"),)


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": ["a", "b"]}, "ab", ""),
        ({"content": {"type": "text", "text": "a"}}, "a", ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "tool_use", "text": "x"}]}, "a", ""),
        ({"content": None, "tool_calls": [{"function": {"name": "f"}}]}, "", ""),
        ({"content": 42}, "42", ""),
        ({}, "", ""),
        ({"content": "a", "reasoning_content": "t", "reasoning": "t"}, "a", "t"),
        ({"content": "a", "reasoning": "t"}, "a", "t"),
        (
            {"content": "a", "reasoning_details": [{"type": "reasoning.text", "text": "t"}]},
            "a",
            "t",
        ),
        (
            {"content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]},
            "a",
            "t",
        ),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}]}, "", "t"),
        ({"content": "<think>\nt\n</think>\n\na"}, "a", "t"),
        ({"content": "t\n</think>\n\na"}, "a", "t"),
        ({"content": "<think>t, and no end"}, "", "t, and no end"),
        ({"content": "<think>\n\n</think>\n\na"}, "a", ""),
        ({"content": "<think>u</think>a", "reasoning_content": "t"}, "a", "t\n\nu"),
        (
            {"content": "The tag `</think>` ends a thought."},
            "The tag `</think>` ends a thought.",
            "",
        ),
        ({"content": "a < b, <b>bold</b>"}, "a < b, <b>bold</b>", ""),
    ],
)
def test_answers_and_thoughts_are_apart(message: Any, text: str, reasoning: str) -> None:
    reply = read_reply(body(choices=[{"message": message, "finish_reason": "stop"}]))
    assert reply.completions == (Completion(text, "stop", reasoning),)
    assert reply.completions[0].complete == bool(text)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"id": 7}, "7"),
        ({"id": None}, ""),
        ({"id": ["x"]}, ""),
        ({"id": True}, ""),
        ({"id": "r"}, "r"),
    ],
)
def test_an_id_may_be_anything(fields: Any, name: str) -> None:
    assert read_reply(body(**fields)).id == name
    assert len(read_reply(body(id="x" * 9999, model="y" * 9999)).id) == 200


def test_only_choices_must_parse() -> None:
    message = {"content": "b"}
    odd = [None, {"message": None}, {"index": None, "message": message, "finish_reason": 3}]
    assert read_reply(body(choices=odd)).completions == (Completion("b", "3"),)
    assert read_reply(body(choices=[{"text": "old"}])).completions == (Completion("old", ""),)
    sglang = [{"message": message, "finish_reason": {"type": "length", "length": 4}}]
    assert read_reply(body(choices=sglang)).completions == (Completion("b", "length"),)
    assert read_reply(body(seed=10**4000)).completions[0].text == "text"
    assert read_reply(b"\xef\xbb\xbf \n[" + body() + b"]").completions[0].text == "text"


def test_what_no_text_can_hold_is_replaced_and_said() -> None:
    choice = b'{"choices": [{"message": {"content": "a%sb"}}]}'
    for content in (b"\\ud83d", b"\\u0000", b"\xff", b"\xc3"):
        reply = read_reply(choice % content)
        assert reply.completions[0].text == "a\ufffdb"
        assert reply.replaced
    reply = read_reply(choice % "\\ud83d\\ude00 é".encode())
    assert (reply.completions[0].text, reply.replaced) == ("a\N{GRINNING FACE} éb", False)


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        ({"choices": None, "error": {"code": 502, "message": "m"}}, ("502", "m")),
        ({"choices": [], "error": "busy"}, ("", "busy")),
        ({"choices": [{"message": {"content": ""}}], "error": {"code": "x"}}, ("x", "")),
        ({"choices": [{"message": {"content": "a"}, "finish_reason": "error"}]}, None),
        (
            {"choices": [{"message": {}, "finish_reason": "ERROR", "error": {"message": "m"}}]},
            ("", "m"),
        ),
        ({"choices": [{"message": {}, "finish_reason": {"type": "abort", "message": "m"}}]}, None),
        ({"choices": [{"message": {}, "finish_reason": "insufficient_system_resource"}]}, None),
    ],
)
def test_a_reply_that_the_server_broke_off_says_why(fields: Any, failure: Any) -> None:
    with pytest.raises(BrokenOff) as broken:
        read_reply(body(**fields))
    assert failure in (None, broken.value.failure)
    kept = read_reply(body(error={"code": 1, "message": "a warning"}))
    assert kept.completions[0].text == "text"


@pytest.mark.parametrize("content", [b"[" * 100_000, b"", b"\0", b"\xff\xfe"])
def test_hostile_json_is_no_reply(content: bytes) -> None:
    with pytest.raises(BadResponse, match="not whole JSON"):
        read_reply(content)


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

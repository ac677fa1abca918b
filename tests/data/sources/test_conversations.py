"""Turns in their forms."""

import pytest

from gad_jax.data.sources import conversations
from gad_jax.data.sources.conversations import turn
from gad_jax.data.sources.rows import Invalid


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *[(name, "system") for name in ("system", "System", "developer")],
        *[(name, "user") for name in ("human", "user", "Human", "prompter", " USER ")],
        *[(name, "assistant") for name in ("gpt", "chatgpt", "bard", "bing", "model", "Chatbot")],
    ],
)
def test_roles_have_many_names(name: str, role: str) -> None:
    assert conversations.read("messages", [{"from": name, "value": "x"}]) == [turn(role, "x")]


def test_an_empty_system_message_stays() -> None:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "x"}]
    assert conversations.read("messages", messages) == messages


def test_thoughts_are_left_out_and_named() -> None:
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]
    message = {"role": "assistant", "content": parts, "reasoning_content": "Hm."}
    assert conversations.read("messages", [message]) == [turn("assistant", "Yes.")]
    assert conversations.left_out([message]) == {"reasoning_content"}


@pytest.mark.parametrize(
    "value",
    [
        "Human: Q\n\nAssistant: A",
        "\n\nHuman: Q\n\nAssistant: A",
        "### Human: Q### Assistant: A",
        "### Human: Q\n### Assistant: A\n",
        "<human>: Q\n<bot>: A",
    ],
)
def test_transcripts(value: str) -> None:
    assert conversations.transcript(value) == [turn("user", "Q"), turn("assistant", "A")]


@pytest.mark.parametrize(
    "value", ["", "Hello", "Say: Human: x", "Assistant: x", "Human:", "<bot>: A"]
)
def test_texts_that_are_no_transcripts(value: str) -> None:
    assert conversations.transcript(value) == []


@pytest.mark.parametrize("value", [[["a", "b"]], [("a", "b")], '[["a", "b"]]', ["a", "b"]])
def test_history(value: object) -> None:
    assert conversations.history("history", value) == [turn("user", "a"), turn("assistant", "b")]


@pytest.mark.parametrize("value", [["a"], [["a", "b", "c"]], [["a", ""]], [[1, 2]], 3, "a", [3]])
def test_history_of_another_form_is_refused(value: object) -> None:
    with pytest.raises(Invalid, match="'history'"):
        conversations.history("history", value)


def test_a_list_of_texts_is_a_conversation_only_where_that_is_usual() -> None:
    assert len(conversations.read("data", ["a", "b"])) == 2
    with pytest.raises(Invalid, match="'messages' holds something else than messages: a text"):
        conversations.read("messages", ["a", "b"])

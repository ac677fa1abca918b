"""Prompts of text columns, and the turns before them."""

from typing import Any

import pytest

from gad_jax.data.sources import prompts
from gad_jax.data.sources.conversations import turn
from gad_jax.data.sources.fields import Columns
from gad_jax.data.sources.rows import Invalid

ASKED = [turn("user", "x")]


@pytest.mark.parametrize(
    ("record", "key", "prompt"),
    [
        ({"prompt": "x"}, "prompt", "x"),
        ({"text": "x"}, "text", "x"),
        ({"user": "x"}, "user", "x"),
        ({"prompt": "x", "user": "Ann"}, "prompt", "x"),
        ({"input": "x"}, "input", "x"),
        ({"question": "x", "input": "y"}, "question", "x\n\ny"),
        ({"instruction": "x", "input": "y", "context": "z"}, "instruction", "x\n\ny\n\nz"),
        ({"instruction": "x", "instances": [{"input": "y"}]}, "instruction", "x\n\ny"),
        ({"turns": ["x"]}, "turns", "x"),
    ],
)
def test_text_columns(record: dict[str, Any], key: str, prompt: str) -> None:
    found = prompts.of_texts(Columns(record))
    assert (found.key, found.turns, found.several) == (key, [turn("user", prompt)], [])


def test_turns_are_several() -> None:
    found = prompts.of_texts(Columns({"turns": ["x", "y"]}))
    assert (found.turns, found.several) == (ASKED, ["x", "y"])


def test_what_stands_before_the_prompt() -> None:
    record = {"system": "s", "history": [["a", "b"]], "chat_history": "[]"}
    before = [turn("system", "s"), turn("user", "a"), turn("assistant", "b")]
    assert prompts.lead(Columns(record), "prompt", ASKED) == [*before, *ASKED]
    own = [turn("system", "s"), *ASKED]
    assert prompts.lead(Columns(record), "prompt", own) == [*before, *ASKED]
    collected = record | {"key": "k", "sample": 0}
    assert prompts.lead(Columns(collected), "prompt", ASKED) == ASKED


def test_only_a_text_that_asks_for_an_answer_is_a_transcript() -> None:
    asks = "Human: a\n\nAssistant: b\n\nHuman: x\n\nAssistant:"
    turns = [turn("user", "a"), turn("assistant", "b"), *ASKED]
    assert prompts.of_value("p", asks, transcripts=True) == turns
    assert prompts.of_value("p", asks) == [turn("user", asks)]
    plain = "Human: what am I?"
    assert prompts.of_value("p", plain, transcripts=True) == [turn("user", plain)]


@pytest.mark.parametrize(
    "other", ["x", "Q: x A:", ["x", "y"], [turn("user", "x")], "<u>x<a>y", 3, True, {"a": 1}]
)
def test_columns_that_say_the_conversation_once_more(other: Any) -> None:
    turns = [*ASKED, turn("assistant", "y")]
    prompts.refuse_other(Columns({"prompt": other}), "messages", turns, ["prompt"])


@pytest.mark.parametrize("other", ["z", ["x", "z"], [turn("user", "z")]])
def test_columns_that_say_something_else(other: Any) -> None:
    turns = [*ASKED, turn("assistant", "y")]
    with pytest.raises(Invalid, match="'messages' and 'prompt' differ, and both may be meant"):
        prompts.refuse_other(Columns({"prompt": other}), "messages", turns, ["prompt"])

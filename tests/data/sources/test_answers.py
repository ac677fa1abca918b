"""Answers in the forms in which files and APIs have them."""

from typing import Any

import pytest

from gad_jax.data.sources import answers
from gad_jax.data.sources.answers import Answer
from gad_jax.data.sources.conversations import turn
from gad_jax.data.sources.rows import Invalid

PROMPT = [turn("system", "s"), turn("user", "x")]


def choice(content: Any, reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **more}, "finish_reason": reason}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a", [Answer("a")]),
        (["a", "b"], [Answer("a"), Answer("b")]),
        ({"role": "assistant", "content": "a"}, [Answer("a")]),
        ({"from": "gpt", "value": "a"}, [Answer("a")]),
        ({"choices": [choice("a"), choice("b", None)]}, [Answer("a", "stop"), Answer("b")]),
        ({"status_code": 200, "body": {"choices": [choice("a")]}}, [Answer("a", "stop")]),
        ({"choices": [{"text": "a", "finish_reason": "eos"}]}, [Answer("a", "eos")]),
        ({"choices": [choice("a", "length")]}, [Answer("a", "length")]),
        ({"choices": [choice(None, "length")]}, [Answer("", "length")]),
        ({"choices": [choice(None, refusal="No.")]}, [Answer("", "refusal")]),
        ({"choices": [choice(None, tool_calls=[{}])]}, [Answer("", "tool_calls")]),
        (
            {"content": [{"type": "text", "text": "a"}], "stop_reason": "end_turn"},
            [Answer("a", "end_turn")],
        ),
        (
            {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}]},
            [Answer("a", "STOP")],
        ),
    ],
)
def test_answers(value: Any, found: list[Answer]) -> None:
    assert answers.read("response", value, PROMPT) == (PROMPT, found)


def test_which_answers_are_whole() -> None:
    whole = [Answer("a", reason).complete for reason in (None, "stop", "STOP", "sated")]
    assert whole == [True] * 4
    assert not Answer("a", "MAX_TOKENS").complete


@pytest.mark.parametrize("lead", [[], [turn("system", "s")]])
def test_messages_that_repeat_the_prompt(lead: list[dict[str, str]]) -> None:
    messages = [*lead, turn("user", "x"), turn("assistant", "a")]
    assert answers.read("chosen", messages, PROMPT) == (PROMPT, [Answer("a")])


def test_messages_that_lengthen_the_prompt() -> None:
    messages = [turn("assistant", "a"), turn("user", "y"), turn("assistant", "b")]
    found = answers.read("completion", messages, PROMPT)
    assert found == ([*PROMPT, *messages[:2]], [Answer("b")])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "'response' is empty"),
        (["a", 3], "'response' is not a text or a list of texts but a number"),
        ({}, "'response' is not a text or a list of texts but an object with the fields none"),
        ({"choices": [choice(None)]}, "an answer in 'response.choices' is empty"),
        ({"choices": [3, choice("a")]}, "'response.choices' is not a text or a list of texts but"),
        ([turn("user", "x")], "'response' does not end with an assistant message"),
        ([turn("user", "z"), turn("assistant", "a")], "'response' holds another conversation than"),
    ],
)
def test_what_is_no_answer(value: Any, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        answers.read("response", value, PROMPT)
    assert str(caught.value).startswith(said)

"""Requests of completions: what they mean, and what is refused."""

import json
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.rollout.sampling import Sampler
from gad_jax.serve import wire


def read(**more: Any) -> wire.ChatRequest:
    messages = [{"role": "user", "content": "Hello"}]
    body = json.dumps({"model": "student", "messages": messages, **more})
    return wire.read(body.encode(), wire.ChatRequest)


def plain(**more: Any) -> wire.CompletionRequest:
    return wire.read(json.dumps({"model": "student", **more}).encode(), wire.CompletionRequest)


def test_a_silent_request_is_sampled_at_temperature_one() -> None:
    assert read().sampler == Sampler(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    given = read(temperature=0, top_k=-1, top_p=0.5, min_p=0.1).sampler
    assert given == Sampler(temperature=0.0, top_k=0, top_p=0.5, min_p=0.1)


def test_stop_is_a_string_or_several() -> None:
    assert [read(stop=stop).stops for stop in (None, "", "a", ["a", "", "b"])] == [
        [],
        [],
        ["a"],
        ["a", "b"],
    ]


def test_parts_are_joined_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
    request = read(messages=[{"role": "developer", "content": parts}])
    assert request.conversation == [{"role": "system", "content": "Be kind."}]


def test_unsupported_fields_are_refused_unless_they_change_nothing() -> None:
    assert read(tools=[], logit_bias=None, presence_penalty=0, user="me").model == "student"
    with pytest.raises(UserError, match="logit_bias is not supported; leave it out"):
        read(logit_bias={"5": 1})
    with pytest.raises(UserError, match="n: Input should be less than or equal to 128"):
        read(n=129)


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"top_p": 0}, "top_p", "top_p: Input should be greater than 0"),
        ({"top_p": float("nan")}, "top_p", "finite"),
        ({"min_p": float("inf")}, "min_p", "min_p"),
        ({"temperature": float("inf")}, "temperature", "temperature"),
        ({"top_k": -2}, "top_k", "top_k"),
        ({"stop": 5}, "stop", "stop: not a text or a list of texts"),
        ({"stop": ["a", 5]}, "stop", "stop: not a text or a list of texts"),
        ({"stop": ["a"] * 17}, "stop", "17 texts; 16 are the limit"),
        ({"stop": "x" * 513}, "stop", "longer than 512 characters"),
        ({"stop_token_ids": list(range(129))}, "stop_token_ids", "at most 128"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids", "stop_token_ids.0"),
        ({"messages": [1] * 100_000}, "messages", "messages.0"),
        ({"messages": [{"role": "user", "content": ""}] * 2049}, "messages", "at most 2048"),
        ({"messages": [{"role": "user"}]}, "messages", "the content is missing"),
        ({"messages": [{"role": "user", "content": "", "name": "<s>"}]}, "messages", "a name is"),
        (
            {"messages": [{"role": "user", "content": "", "tool_calls": [{}]}]},
            "messages",
            "messages.0: 'tool_calls' is not supported in a message",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "x": 1}]}]},
            "messages",
            "a text part with 'x' is not supported",
        ),
        ({"stream_options": {}}, "stream_options", "for stream=true alone"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "stream_options.x"),
        ({"best_of": 2}, "best_of", "best_of is not supported"),
        ({"echo": True}, "echo", "echo is not supported"),
        ({"prompt": "x"}, "prompt", "prompt is unknown"),
    ],
)
def test_mistakes_name_their_field(more: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(wire.Refused) as caught:
        read(**more)
    assert says in caught.value.message
    assert (caught.value.status, caught.value.param) == (400, param)
    assert len(caught.value.message) < 300


def test_a_reply_can_be_sent_back() -> None:
    thinking = {"role": "assistant", "reasoning_content": "2 + 2", "content": None, "refusal": None}
    question = {"role": "user", "content": "And?", "name": "me-1"}
    request = read(messages=[question, thinking, question])
    assert request.conversation[1] == {"role": "assistant", "content": ""}
    assert request.conversation[2] == question
    assert read(max_tokens=4, max_completion_tokens=5).limit == 5
    assert read(stop_token_ids=None).stop_token_ids == []
    assert read(n=2, best_of=2).choices == 2


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ([[]], [[]]),
    ],
)
def test_prompts_are_texts_or_tokens(prompt: Any, prompts: list[Any]) -> None:
    assert plain(prompt=prompt).prompt == prompts


@pytest.mark.parametrize("prompt", [None, [], {}, 5, [1, "a"], [[1], 2], [True], [1.5], [["a"]]])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(wire.Refused, match=r"prompt: not a text, a list of tokens"):
        plain(prompt=prompt)


def test_completions_have_their_own_fields() -> None:
    assert plain(prompt="a", logprobs=0).wants_logprobs
    assert not plain(prompt="a", logprobs=None, suffix="", echo=False).wants_logprobs
    assert not plain(prompt="a", logprobs=False).wants_logprobs
    with pytest.raises(wire.Refused, match="use 0 or null"):
        plain(prompt="a", logprobs=5)
    with pytest.raises(wire.Refused, match="echo with logprobs"):
        plain(prompt="a", logprobs=0, echo=True)
    with pytest.raises(wire.Refused, match="suffix is not supported"):
        plain(prompt="a", suffix="b")
    with pytest.raises(wire.Refused, match="256 answers; 128 are the limit"):
        plain(prompt=["a"] * 128, n=2)
    with pytest.raises(wire.Refused, match="129 prompts; 128 are the limit"):
        plain(prompt=["a"] * 129)
    with pytest.raises(wire.Refused, match="messages is unknown"):
        plain(prompt="a", messages=[])

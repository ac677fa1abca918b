"""Requests of chat completions: what they mean, and what is refused."""

import json
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.rollout.sampling import Sampler
from gad_jax.serve import wire


def read(**more: Any) -> wire.ChatRequest:
    messages = [{"role": "user", "content": "Hello"}]
    return wire.read(json.dumps({"model": "student", "messages": messages, **more}).encode())


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

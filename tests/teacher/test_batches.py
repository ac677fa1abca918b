"""Single responses of a batch: read, refused or unanswered, as those of single requests."""

import json
from typing import Any

import pytest

from gad_jax.teacher.batch_format import BatchResponse
from gad_jax.teacher.batches import BatchRequest, read
from gad_jax.teacher.client import PromptRefused, Unanswered


def response(status: int, body: Any) -> BatchResponse:
    return BatchResponse("id", status, json.dumps(body).encode())


def test_a_request_is_one_line() -> None:
    line = BatchRequest("7", {"model": "m"}).line()
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "custom_id": "7",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m"},
    }


def test_a_response_is_read_as_that_of_one_request() -> None:
    whole = {"choices": [{"message": {"content": "text"}, "finish_reason": "stop"}]}
    assert read(response(200, whole)).completions[0].text == "text"
    long = {"error": {"code": "context_length_exceeded", "message": "Too\nlong."}}
    with pytest.raises(PromptRefused, match=r"^status 400: Too long\.$"):
        read(response(400, long))
    with pytest.raises(Unanswered, match=r"^status 500: Too long\.$"):
        read(response(500, long))
    with pytest.raises(Unanswered, match="no chat completion"):
        read(response(200, {"no": 1}))
    with pytest.raises(Unanswered, match=r"^not asked$"):
        read(response(0, {}))

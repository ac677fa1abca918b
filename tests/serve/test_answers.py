"""Answers over HTTP where something goes wrong, with a student that says what the test wants."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.serve import answers, api
from gad_jax.serve.answers import Answer
from gad_jax.serve.forms import ChatForm
from gad_jax.serve.guard import Access
from gad_jax.serve.wire import ChatRequest
from tests.serve import fakes

NAN = float("nan")


@pytest.fixture
def decoding(tmp_path: Path) -> fakes.Decoding:
    write_tiny(tmp_path)
    return fakes.Decoding(
        fakes.student(tmp_path), lambda prompt: None if "fault" in prompt else "Fine.", most=6
    )


@pytest.fixture
def client(decoding: fakes.Decoding) -> Iterator[TestClient]:
    with TestClient(api.make(decoding, api.Terms("m", "", 50, 0), Access())) as one:
        yield one


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize("stream", [True, False])
def test_a_fault_of_one_is_an_error_of_one(client: TestClient, stream: bool) -> None:
    response = client.post("/v1/chat/completions", json=asked("a fault", stream=stream))
    if stream:
        *_, last = response.text.strip().split("\n\n")
        error = json.loads(last.removeprefix("data: "))["error"]
    else:
        assert response.status_code == 500
        error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "failed")
    response = client.post("/v1/chat/completions", json=asked("Hello"))
    assert response.json()["choices"][0]["message"]["content"] == "Fine."


def test_beyond_the_places_all_choices_are_given_up(
    client: TestClient, decoding: fakes.Decoding
) -> None:
    response = client.post("/v1/chat/completions", json=asked("Hello", n=8))
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "busy"
    assert "Retry-After" in response.headers
    assert len(decoding.seen) == 6
    assert all(request.cancelled.is_set() for request in decoding.seen)


def test_a_server_that_has_stopped_says_so(
    client: TestClient, decoding: fakes.Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(request: Any) -> None:
        raise RuntimeError("the devices are gone")

    monkeypatch.setattr(decoding, "submit", stopped)
    monkeypatch.setattr(type(decoding), "alive", False)
    response = client.post("/v1/chat/completions", json=asked("Hello"))
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "stopped"
    assert client.get("/health").status_code == 503
    monkeypatch.setattr(type(decoding), "alive", True)
    with TestClient(client.app, raise_server_exceptions=False) as other:
        response = other.post("/v1/chat/completions", json=asked("Hello"))
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"


def test_a_stream_that_never_began_frees_its_places(decoding: fakes.Decoding) -> None:
    async def run() -> None:
        request = ChatRequest.model_validate(asked("Hello"))
        chat = decoding.student.chat
        answer = Answer(request, "m", ChatForm(None), chat, False, 1)
        one = answer.request(decoding.student.encode(request.conversation), 5, 0)
        with pytest.raises(ValueError, match="log-prob of token 65 is nan"):
            one.on_token(65, NAN)

        async def gone(message: Any) -> None:
            raise OSError

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        stream = answers.Stream(answer)
        await asyncio.gather(stream(scope, receive, gone), return_exceptions=True)
        assert one.cancelled.is_set()

    asyncio.run(run())


def test_seeds_are_of_the_prompt() -> None:
    request = ChatRequest.model_validate(asked("x", n=2, seed=7))
    assert answers.seeds(request, ["a", "b"], 100) == [7, 8, 7, 8]
    request = ChatRequest.model_validate(asked("x", n=2))
    assert answers.seeds(request, ["a", "b"], 100) == [100, 101, 102, 103]

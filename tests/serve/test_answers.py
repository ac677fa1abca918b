"""Answers over HTTP where something goes wrong, with a student that says what the test wants."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.serve import answers, api, fields, wire
from gad_jax.serve.answers import Answer
from gad_jax.serve.errors import Refused
from gad_jax.serve.forms import ChatForm
from gad_jax.serve.guard import Access
from gad_jax.serve.wire import Asked, ChatRequest, CompletionRequest
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


VALUES = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, -(10**400), 0.5, 1e-320, 1e308),
    *("", "x", "\x00", "é" * 600, [], {}, [[]], [{}], [None], [""], [1, "a"], ["a"] * 200),
    *([-1], [10**400], [[10**400]], [0.5], {"a": None}, {"include_usage": "x"}, [[["deep"]]]),
    *([{"role": "user"}], [{"role": "user", "content": 5}], [{"role": 1, "content": ""}]),
    *([{"role": "user", "content": [{"type": []}]}], [{"role": "user", "content": {}}]),
    *([{"role": "user", "content": [[]]}], [{"role": "user", "content": "", "name": []}]),
]


def refusal(content: str, form: type[Asked]) -> Refused | None:
    try:
        wire.read(content.encode(), form)
    except Refused as refused:
        return refused
    return None


@pytest.mark.parametrize("form", [ChatRequest, CompletionRequest])
def test_no_value_of_a_field_is_a_fault(
    client: TestClient, decoding: fakes.Decoding, form: type[Asked]
) -> None:
    decoding.most = 10**6
    chat = form is ChatRequest
    good = asked("Hello") if chat else {"model": "m", "prompt": "Hello"}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    names = [*form.model_fields, *fields.NEUTRAL, *fields.HARMLESS, "", "x" * 100, "\x00"]
    taken = set()
    for name in names:
        for value in VALUES:
            content = json.dumps(good | {name: value})
            problem = refusal(content, form)
            if problem is not None:
                assert problem.status == 400
                assert (problem.param or name).removesuffix("…") == name[:64], (value, problem)
                continue
            taken.add(name)
            if name in form.model_fields and (chat or name not in Asked.model_fields):
                response = client.post(path, content=content)
                assert response.status_code in (200, 400, 404), (name, value, response.text)
                assert response.status_code == 200 or response.json()["error"]["param"]
    assert taken > {*form.model_fields, *fields.HARMLESS} - {"messages", "stream_options"}


def test_seeds_are_of_the_prompt() -> None:
    request = ChatRequest.model_validate(asked("x", n=2, seed=7))
    assert answers.seeds(request, ["a", "b"], 100) == [7, 8, 7, 8]
    request = ChatRequest.model_validate(asked("x", n=2))
    assert answers.seeds(request, ["a", "b"], 100) == [100, 101, 102, 103]

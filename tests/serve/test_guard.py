"""Requests that are judged by their headers and their size."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.serve import api, errors, guard
from gad_jax.serve.errors import Refused
from gad_jax.serve.guard import Access, Bodies, Guard
from tests.serve import fakes

MOST = 1000


def application(access: Access) -> Any:
    bodies = Bodies(MOST)

    async def size(request: Request) -> Response:
        return Response(str(len(await bodies.read(request))))

    routes = [Route("/", size, methods=["GET", "POST"])]
    return Guard(Starlette(routes=routes, exception_handlers=errors.HANDLERS), access, MOST)


def ask(access: Access, method: str = "POST", content: Any = b"{}", **headers: str) -> Any:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    with TestClient(application(access), base_url="http://localhost:8000") as client:
        return client.request(method, "/", content=content, headers=headers)


LOCAL = Access.of("127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 200, ""),
        ({"Content_Type": "application/json; charset=utf-8"}, 200, ""),
        ({"Content_Type": "application/vnd.api+json"}, 200, ""),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 200, ""),  # curl -d
        ({"Content_Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"Content_Type": "TEXT/PLAIN;charset=UTF-8"}, 415, "unsupported_media_type"),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        ({"Origin": "http://localhost:8000"}, 200, ""),
        ({"Origin": "http://localhost:9000"}, 403, "wrong_origin"),
        ({"Origin": "http://localhost"}, 403, "wrong_origin"),
        ({"Origin": "http://example.org", "Content_Type": "text/plain"}, 403, "wrong_origin"),
        ({"Origin": "null"}, 403, "wrong_origin"),
        ({"Origin": ""}, 403, "wrong_origin"),
        ({"Sec_Fetch_Site": "cross-site"}, 403, "wrong_origin"),
        ({"Sec_Fetch_Site": "same-origin", "Origin": "http://localhost:8000"}, 200, ""),
        ({"Host": "example.org"}, 400, "wrong_host"),
        ({"Host": "example.org:8000", "Origin": "http://example.org:8000"}, 400, "wrong_host"),
        ({"Host": "127.0.0.1.example.org"}, 400, "wrong_host"),
        ({"Host": "[::1]:8000"}, 200, ""),
        ({"Host": "::1"}, 400, "wrong_host"),
        ({"Host": "LOCALHOST:1"}, 200, ""),
        ({"Content_Length": "2", "Transfer_Encoding": "chunked"}, 400, "ambiguous_length"),
    ],
)
def test_who_may_ask(headers: dict[str, str], status: int, code: str) -> None:
    response = ask(LOCAL, **headers)
    assert response.status_code == status
    if code:
        assert response.json()["error"]["code"] == code
    if code == "ambiguous_length":
        assert response.headers["Connection"] == "close"


def test_pages_may_read_what_they_load_and_others_may_be_allowed() -> None:
    assert ask(LOCAL, "GET", b"", Origin="http://example.org").status_code == 200
    access = Access((), ("https://example.org",))
    assert ask(access, Origin="https://example.org").status_code == 200
    assert ask(access, Origin="https://example.com").status_code == 403
    assert ask(Access((), ("*",)), Origin="null", Sec_Fetch_Site="cross-site").status_code == 200


def test_a_site_that_is_allowed_passes_its_browsers_preflight(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    decoding = fakes.Decoding(fakes.student(tmp_path), lambda prompt: "Fine.")
    access = Access.of("127.0.0.1", "127.0.0.1", ["https://example.org"])
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    asked |= {"Access-Control-Request-Headers": "authorization,content-type"}
    application = api.make(decoding, api.Terms("m", "", 50, 0), access)
    with TestClient(application, base_url="http://localhost") as client:
        preflight = client.options("/v1/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == "https://example.org"
        body = {"model": "m", "prompt": "Hello"}
        for origin, status in (("https://example.org", 200), ("https://example.com", 403)):
            response = client.post("/v1/completions", json=body, headers={"Origin": origin})
            assert response.status_code == status
            allowed = response.headers.get("Access-Control-Allow-Origin")
            assert allowed == (origin if status == 200 else None)


@pytest.mark.parametrize(
    ("address", "host", "local"),
    [
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.9.9.9", "127.9.9.9", True),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "my-name", True),
        ("0.0.0.0", "0.0.0.0", False),
        ("::", "::", False),
        ("192.0.2.1", "192.0.2.1", False),
        ("fe80::1%eth0", "fe80::1%eth0", False),
    ],
)
def test_this_computer_alone_is_checked_by_name(address: str, host: str, local: bool) -> None:
    access = Access.of(address, host)
    assert ("localhost" in access.hosts) == local
    assert (host in access.hosts) == local
    assert access.hosts or not local


def test_size_is_judged_by_the_header_and_while_reading() -> None:
    def parts() -> Iterator[bytes]:
        yield from [b"x" * 300] * 4

    assert ask(LOCAL, content=b"x" * MOST).text == str(MOST)
    for content in (b"x" * (MOST + 1), parts()):
        response = ask(LOCAL, content=content)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "too_large"


def test_a_slow_one_and_many_large_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(guard, "MOST_HELD", 1500)
    monkeypatch.setattr(guard, "SMALL_BODY", 100)
    bodies = Bodies(MOST)

    async def status(wait: float, *parts: bytes) -> int:
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            await asyncio.sleep(wait)
            return {"type": "http.request", "body": b"", "more_body": False}

        request = Request({"type": "http", "method": "POST", "headers": []}, receive)
        try:
            return 200 + 0 * len(await bodies.read(request))
        except Refused as refused:
            return refused.status

    async def run() -> None:
        assert await status(60.0, b"x") == 408
        sizes = (900, 900, 100)
        several = [asyncio.create_task(status(0.02, b"x" * size)) for size in sizes]
        assert await asyncio.gather(*several) == [200, 429, 200]
        assert await status(0.0, b"x" * 900) == 200  # the others' have been freed

    asyncio.run(run())


def test_the_limit_follows_the_context() -> None:
    assert guard.most_bytes(4096) == 2**20
    assert guard.most_bytes(2**16) == 2**22
    assert guard.most_bytes(2**22) == 2**23


def test_what_is_no_http_has_an_error_too() -> None:
    kind, content = guard.Connection.error_content(None, "No HTTP.")  # pyright: ignore
    assert kind == b"application/json"
    assert json.loads(content)["error"]["message"] == "No HTTP."

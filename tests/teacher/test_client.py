"""The client against a server that fails in every way: what it retries, and what it says."""

import asyncio
import dataclasses
import re
import time
from email.utils import formatdate
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.teacher.client import (
    Client,
    Endpoint,
    Patience,
    PromptRefused,
    Rejected,
    Unanswered,
    retry_after,
)
from gad_jax.teacher.wire import Reply
from tests.fault_server import FaultServer

QUICK = Patience(attempts=4, timeout=60.0, max_wait=3.0, first_wait=0.01)
QUESTION = [{"role": "user", "content": "Hello"}]
KEY = "sk-SENTINEL0123456789abcdef"


def ask(server: FaultServer, patience: Patience = QUICK, **parameters: Any) -> Reply:
    async def run() -> Reply:
        async with Client(Endpoint(server.url, "m", "TEST_KEY"), patience) as client:
            return await client.chat(QUESTION, parameters, idempotency_key="k")

    return asyncio.run(run())


def first(fault: str) -> Any:
    return lambda number, body: fault if number == 0 else ""


def test_a_request_is_sent_as_the_api_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", f" {KEY}\n")
    with FaultServer() as server:
        reply = ask(server, temperature=0.5, n=2)
    assert server.requests == [{"model": "m", "messages": QUESTION, "temperature": 0.5, "n": 2}]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert [c.text for c in reply.completions] == ["Answer 1 to Hello", "Answer 2 to Hello"]
    assert (reply.id, reply.model, reply.completions[0].complete) == ("reply-2", "scripted-1", True)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (10, 10)


@pytest.mark.parametrize(
    "fault",
    ["429", "500", "503", "408", "stall", "reset", "drop", "truncate", "html", "no choices"],
)
def test_what_may_pass_is_retried(fault: str) -> None:
    patience = dataclasses.replace(QUICK, timeout=3.0) if fault == "stall" else QUICK
    with FaultServer(first(fault)) as server:
        assert ask(server, patience).completions[0].complete
    assert len(server.requests) == 2
    assert {headers["idempotency-key"] for headers in server.headers} == {"k"}
    assert server.billed == 1 or fault in ("no choices",)


@pytest.mark.parametrize("fault", ["500", "html", "reset", "no choices"])
def test_attempts_are_bounded(fault: str) -> None:
    with FaultServer(lambda number, body: fault) as server, pytest.raises(Unanswered) as gave_up:
        ask(server)
    assert len(server.requests) == 4
    assert "4 attempts" in str(gave_up.value)


def test_a_rejection_by_the_rate_limit_is_no_attempt() -> None:
    with FaultServer(lambda number, body: "429 after 0.01" if number < 12 else "") as server:
        ask(server)  # which has 4 attempts
    assert (len(server.requests), server.billed) == (13, 1)


def test_retry_after_is_honoured_within_the_patience() -> None:
    with FaultServer(first("429 after 1")) as server:
        ask(server)
        assert server.arrivals[1] - server.arrivals[0] >= 1.0
    with FaultServer(first("429 after 600")) as server, pytest.raises(Unanswered, match="429"):
        ask(server)
    assert len(server.requests) == 1  # a retry would come after 600 s
    now = 1_700_000_000.0
    date = formatdate(now + 7, usegmt=True)
    assert retry_after({"retry-after": date}, now) == 7
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}, now) == 0.25
    assert retry_after({"retry-after": "soon"}, now) == retry_after({}, now) == 0


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("400 unknown_model", "status 400 (scripted: no)"),
        ("401", "the environment variable TEST_KEY is not set"),
        ("403", "TEST_KEY is not set"),
        ("404", "the URL usually ends in /v1"),
        ("307", "the URL usually ends in /v1"),
        ("429 insufficient_quota", "the quota is used up"),
    ],
)
def test_what_cannot_pass_ends_at_once(fault: str, says: str) -> None:
    with FaultServer(lambda number, body: fault) as server, pytest.raises(UserError) as refused:
        ask(server)
    assert len(server.requests) == 1
    assert says in str(refused.value)


@pytest.mark.parametrize("fault", ["400 context_length_exceeded", "413", "422 content_filter"])
def test_a_refused_prompt_is_only_that(fault: str) -> None:
    with FaultServer(lambda number, body: fault) as server, pytest.raises(PromptRefused):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 403, 418, 422])
def test_a_rejection_that_does_not_say_whom_it_is_about(status: int) -> None:
    with FaultServer(lambda number, body: (status, {})) as server, pytest.raises(Rejected) as no:
        ask(server)
    assert len(server.requests) == 1
    assert no.value.reason == f"status {status}: no reason is given"


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        ({"code": 502, "message": "Provider\x1b[2J returned"}, Unanswered, "Provider\ufffd[2J"),
        ({"code": "server_error"}, Unanswered, "status 200 with an error server_error"),
        ({"code": "content_filter", "message": "no"}, PromptRefused, "status 400: no"),
        ({"code": 401, "message": "no"}, UserError, "TEST_KEY is not set"),
        ({"code": "insufficient_quota", "message": "pay"}, UserError, "pay"),
        ({"type": "invalid_request_error", "message": "odd"}, Rejected, "status 400 (odd)"),
    ],
)
def test_an_error_in_a_reply_keeps_its_code_and_words(error: Any, kind: Any, says: str) -> None:
    with (
        FaultServer(lambda number, body: (200, {"error": error})) as server,
        pytest.raises(kind, match=re.escape(says)),
    ):
        ask(server)
    assert len(server.requests) == (4 if kind is Unanswered else 1)


def test_a_finish_reason_error_is_not_final() -> None:
    broken = {"choices": [{"message": {"content": "Ans"}, "finish_reason": "error"}]}
    with FaultServer(lambda number, body: "" if number else (200, broken)) as server:
        assert ask(server).completions[0].complete
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", ["slow", "bytes"])
def test_an_odd_body_is_read(fault: str) -> None:
    with FaultServer(lambda number, body: fault) as server:
        assert ask(server).replaced == (fault == "bytes")
    assert (len(server.requests), server.billed) == (1, 1)


@pytest.mark.parametrize("fault", ["chunks", "gzip", "longer", "shorter"])
def test_a_spoiled_body_is_requested_again(fault: str) -> None:
    with FaultServer(first(fault)) as server:
        assert ask(server).completions[0].complete
    assert (len(server.requests), server.billed) == (2, 1)


def test_a_server_that_cannot_be_reached_ends_within_seconds() -> None:
    async def run() -> Reply:
        async with Client(Endpoint("http://127.0.0.1:9/v1", "m", "TEST_KEY"), Patience()) as client:
            return await client.chat(QUESTION)

    started = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be reached \(connection refused\)") as ended:
        asyncio.run(run())
    assert time.monotonic() - started < 100  # others are asked again for 15 minutes
    assert "TEST_KEY is not set either" in str(ended.value)


def test_kinds_of_faults_are_bounded() -> None:
    patience = dataclasses.replace(QUICK, attempts=1)

    async def run(url: str) -> dict[str, int]:
        async with Client(Endpoint(url, "m"), patience) as client:
            for _ in range(40):
                with pytest.raises(Unanswered):
                    await client.chat(QUESTION)
            return client.faults

    def script(number: int, body: Any) -> Any:
        return 200, {"error": {"code": f"server_error_{number}"}}

    with FaultServer(script) as server:
        faults = asyncio.run(run(server.url))
    assert (len(faults), faults["other faults"]) == (31, 10)


@pytest.mark.parametrize("fault", ["empty", "null", "length", "content_filter"])
def test_a_paid_answer_is_returned_whatever_it_is(fault: str) -> None:
    with FaultServer(lambda number, body: fault) as server:
        completion = ask(server).completions[0]
    assert (server.billed, completion.complete) == (1, False)
    assert completion.finish_reason == (fault if "_" in fault or fault == "length" else "stop")


def test_the_key_is_never_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    with FaultServer(lambda number, body: "echo") as server, pytest.raises(UserError) as refused:
        ask(server)
    assert "[redacted]" in str(refused.value)
    assert KEY not in str(refused.value)
    monkeypatch.setenv("TEST_KEY", "two words")
    with pytest.raises(UserError, match="TEST_KEY does not hold a key"):
        Client(Endpoint("http://localhost/v1", "m", "TEST_KEY"))
    for wrong in (KEY, "hf_abcdefghijklmnopqrst", "not a name"):
        with pytest.raises(ValueError, match="never the key itself") as told:
            Endpoint("http://localhost/v1", "m", wrong)
        assert wrong not in str(told.value)


def test_an_endpoint_is_checked() -> None:
    for url in ("localhost:8000", "http://user:pw@host/v1", "https://host/v1?key=x", "ftp://host"):
        with pytest.raises(ValueError, match="base_url"):
            Endpoint(url, "m")
    with pytest.raises(ValueError, match="model"):
        Endpoint("http://host/v1", " ")

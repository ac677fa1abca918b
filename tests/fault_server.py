"""A teacher on this computer that fails as asked, and counts what it bills.

    with FaultServer(lambda number, body: "503" if number < 3 else "") as server:
        ...  # server.url is a base URL; the first three requests fail
    assert server.billed == 1

A script gets the number of the request and its body, and returns the fault: a status such as
`429`, `429 after 2`, `400 context_length_exceeded`, or one of `stall`, `reset` (before answering),
`drop` (in the middle of a billed body), `truncate`, `html`, `no choices`, `empty`, `null`,
`length`, `content_filter`, `same id`, `echo` (an error that quotes the key); empty answers.
These spoil how a billed body is sent: `slow`, `chunks` (no chunked encoding), `gzip` (nor this),
`longer` and `shorter` (than its Content-Length), `bytes` (no UTF-8 in its text).
A script may also return a pair (status, JSON value or bytes), which is sent and not billed; or an
object whose fields replace those of the billed reply, `choice` those of its choices, and `message`
those of their messages.
A request with an Idempotency-Key that was billed before gets the same body and is not billed again.
"""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

Script = Callable[[int, dict[str, Any]], Any]


class FaultServer:
    """Serves from its own thread; `latency` seconds an answer, `rate` of them a second. No answer
    is written while `held`.

    `answer` writes the text of an answer, given the request's body. `batch` answers what is no
    chat completion, given "METHOD path", headers and body: with bytes or a JSON value, a status
    before it, or None, which cuts the connection."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        latency: float = 0.0,
        rate: float = 0.0,
        honours_n: bool = True,
        answer: Callable[[dict[str, Any]], str] | None = None,
        batch: Callable[[str, dict[str, Any], bytes], Any] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = script or (lambda number, body: "")
        self.latency, self.rate, self.honours_n, self.batch = latency, rate, honours_n, batch
        self.answer, self.tls = answer, tls
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.arrivals: list[float] = []
        self.billed, self.held = 0, False
        self.most_in_flight = 0
        self._in_flight = 0
        self._replies: dict[str, bytes] = {}
        self._tokens, self._filled_at = rate / 10, time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FaultServer":
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=self.tls)
        self.url = (
            f"http{'s' if self.tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        )
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: Any, writer: Any) -> None:
        try:
            while await self._exchange(reader, writer):
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: Any, writer: Any) -> bool:
        """Answers one request; returns whether the connection stays open."""
        start = await reader.readexactly(1)
        if start == b"\x16":  # TLS, which such a server answers as it does any other nonsense
            writer.write(_http(400, b""))
            return False
        head = (start + await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = head[0].split()
        if self.batch is not None and not path.endswith("/chat/completions"):
            answer = self.batch(f"{method} {path.removeprefix('/v1/')}", headers, raw)
            if answer is None:
                writer.transport.abort()
                return False
            status, answer = answer if isinstance(answer, tuple) else (200, answer)
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            writer.write(_http(status, content))
            return True
        body = json.loads(raw)
        number = len(self.requests)
        self.requests.append(body)
        self.headers.append(headers)
        self.arrivals.append(time.monotonic())
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return await self._answer(number, body, headers, writer)
        finally:
            self._in_flight -= 1

    async def _answer(
        self, number: int, body: dict[str, Any], headers: dict[str, str], writer: Any
    ) -> bool:
        scripted = self.script(number, body)
        if isinstance(scripted, tuple):
            status, value = scripted
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            writer.write(_http(status, content))
            return True
        fields = scripted if isinstance(scripted, dict) else {}
        fault, _, detail = ("" if fields else scripted).partition(" ")
        if self.rate and not fault and not self._take_token():
            fault, detail = "429", "after 0.2"
        if fault.isdigit() or fault == "echo":
            status = int(fault) if fault.isdigit() else 401
            said = headers.get("authorization", "") if fault == "echo" else "no"
            more = f"Retry-After: {detail[6:]}\r\n" if detail.startswith("after ") else ""
            content = json.dumps({"error": {"message": f"scripted: {said}", "code": detail}})
            writer.write(_http(status, content.encode(), more))
            return True
        if fault == "stall":
            await asyncio.sleep(3600)
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "html":
            writer.write(_http(200, b"<html>busy</html>", kind="text/html"))
            return True
        await asyncio.sleep(self.latency)
        while self.held:
            await asyncio.sleep(0.01)
        content = self._bill(body, headers, f"{fault} {detail}".strip(), fields)
        if fault == "drop":
            writer.write(_http(200, content)[:-20])
            await writer.drain()
            return False
        if fault in ("slow", "chunks", "gzip", "longer", "shorter", "bytes"):
            return await self._spoil(fault, content, writer)
        writer.write(_http(200, content[:-20] if fault == "truncate" else content))
        return True

    async def _spoil(self, fault: str, content: bytes, writer: Any) -> bool:
        """Sends a billed body in an unusual or broken way."""
        whole = _http(200, content)
        if fault == "slow":
            for start in range(0, len(whole), 100):
                writer.write(whole[start : start + 100])
                await writer.drain()
                await asyncio.sleep(0.01)
            return True
        if fault == "bytes":
            writer.write(_http(200, content.replace(b"Answer ", b"Answ\xff\xfe ")))
            return True
        if fault == "chunks":
            head = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"
            writer.write(head + content[:50] + b"zz\r\n\0\r\n")
        elif fault == "gzip":
            writer.write(_http(200, content, "Content-Encoding: gzip\r\n"))
            return True
        elif fault == "longer":
            writer.write(_http(200, content + b" " * 40)[:-40])
        else:
            writer.write(_http(200, content[:-20]) + content[-20:])
        await writer.drain()
        return False

    def _take_token(self) -> bool:
        now = time.monotonic()
        most = max(1.0, self.rate / 10)
        self._tokens = min(most, self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _bill(
        self, body: dict[str, Any], headers: dict[str, str], fault: str, fields: dict[str, Any]
    ) -> bytes:
        """Returns the body of an answer, and counts its answers unless they were paid before."""
        key = headers.get("idempotency-key", "")
        if key in self._replies:
            return self._replies[key]
        wanted = body.get("n", 1) if self.honours_n else 1
        prompt = body["messages"][-1]["content"]
        choices = []
        for index in range(wanted if fault != "no choices" else 0):
            self.billed += 1
            text: str | None = f"Answer {self.billed} to {prompt}"
            text = self.answer(body) if self.answer else text
            text = {"empty": "", "null": None, "content_filter": None}.get(fault, text)
            reason = fault if fault in ("length", "content_filter") else "stop"
            message = {"role": "assistant", "content": text} | fields.get("message", {})
            choice = {"index": index, "message": message, "finish_reason": reason}
            choices.append(choice | fields.get("choice", {}))
        identity = "same" if fault == "same id" else f"reply-{self.billed}"
        usage = {"prompt_tokens": 10, "completion_tokens": 5 * len(choices)}
        reply = {"id": identity, "model": "scripted-1", "choices": choices, "usage": usage}
        reply |= {name: fields[name] for name in fields if name not in ("choice", "message")}
        content = json.dumps(reply).encode()
        if key and fault not in ("empty", "null", "no choices"):
            self._replies[key] = content
        return content


def _http(status: int, content: bytes, more: str = "", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
    return f"{head}{more}\r\n".encode() + content

"""Addresses that can be used, and clients that are too slow."""

import os
import signal
import socket
import threading
import time
from typing import Any

import pytest

from gad_jax.base import listening
from gad_jax.base.errors import UserError


def test_a_port_in_use_is_named() -> None:
    with listening.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        bound.listen()
        with pytest.raises(UserError, match=f"--port={port} cannot be used on 127.0.0.1"):
            listening.bind("127.0.0.1", port)
    listening.bind("127.0.0.1", port).close()  # free again


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def test_clients_that_do_not_ask_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "HEADER_SECONDS", 2.0)
    whole = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    upload = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    said: dict[str, tuple[bytes, float]] = {}

    def ask(name: str, port: int, content: bytes) -> None:
        started, received = time.monotonic(), b""
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(content)
            while part := client.recv(65536):
                received += part
            said[name] = received, time.monotonic() - started

    def ask_all(address: str) -> None:
        port = int(address.rsplit(":", 1)[1])
        asked = {"silent": b"", "half": whole[:20], "garbage": b"garbage\r\n\r\n"}
        asked |= {"whole and half": whole + whole[:20], "unread": upload + b"x"}
        clients = [
            threading.Thread(target=ask, args=[name, port, content])
            for name, content in asked.items()
        ]
        for client in clients:
            client.start()

        def end() -> None:
            for client in clients:
                client.join()
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=end).start()

    with listening.bind("127.0.0.1", 0) as bound:
        listening.serve(_hello, bound, ask_all)
    assert said["silent"][0] == said["half"][0] == b""
    assert said["garbage"][0].startswith(b"HTTP/1.1 400 ")
    assert said["whole and half"][0].count(b"hello") == 1
    assert b"hello" in said["unread"][0]
    for name, (_, seconds) in said.items():
        assert (name == "garbage") or 1.9 < seconds < 60, name

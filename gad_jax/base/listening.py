"""An HTTP server on a local or public address, until Ctrl-C or SIGTERM."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gad_jax.base.errors import UserError

HEADER_SECONDS = 10.0
"""How long a client may take to send the headers of a request, or what nobody reads of it."""


class Connection(H11Protocol):
    """A client's connection, which is closed if the client is slow to ask."""

    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Starts the clock."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        super().connection_lost(exc)
        self._stop_clock()

    def handle_events(self) -> None:
        """Stops the clock when a request has begun."""
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        """Starts the clock for the next request."""
        super().on_response_complete()
        self._watch()

    def error_content(self, message: str) -> tuple[bytes, bytes]:
        """Returns content type and content of the answer to what is not HTTP."""
        return b"text/plain; charset=utf-8", message.encode("ascii")

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, and closes the connection."""
        kind, content = self.error_content(msg)
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing():
            self._stop_clock()
        elif self._closing is None:
            self._closing = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_clock(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to the address but does not listen yet.

    Raises UserError if the address cannot be used.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise UserError(
            f"--port={port} cannot be used on {host} ({error.strerror}); stop what uses it, or "
            "give another"
        ) from None
    return bound


def serve(
    application: Any,
    bound: socket.socket,
    say: Callable[[str], None],
    connection: type[Connection] = Connection,
) -> None:
    """Serves an ASGI application; calls `say` with the address once clients can connect."""
    config = uvicorn.Config(
        application, http=connection, ws="none", log_level="warning", timeout_graceful_shutdown=5
    )
    bound.listen()  # before `say`: early clients then wait in the queue instead of being refused
    host, port = bound.getsockname()[:2]
    say(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    # uvicorn shuts down on SIGTERM, then raises the signal again for the handler before it
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, before)

"""An HTTP server on a local or public address, until Ctrl-C or SIGTERM."""

import contextlib
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from gad_jax.base.errors import UserError


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


def serve(application: Any, bound: socket.socket, say: Callable[[str], None]) -> None:
    """Serves an ASGI application; calls `say` with the address once clients can connect."""
    config = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=5)
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

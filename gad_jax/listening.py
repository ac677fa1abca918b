"""Listening for HTTP, for this computer or for others, until Ctrl-C or SIGTERM."""

from collections.abc import Callable
from typing import Any

import uvicorn

from gad_jax.errors import UserError


def serve(application: Any, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves an ASGI application; `say` is told the address once clients can reach it.

    Raises UserError for an address that cannot be used.
    """
    config = uvicorn.Config(
        application, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5
    )
    try:
        listening = config.bind_socket()
    except SystemExit:
        raise UserError(
            f"--port={port} cannot be used on {host}; stop what uses it, or give another"
        ) from None
    listening.listen()  # before its address is told: who comes early waits, and is not turned away
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{shown}:{listening.getsockname()[1]}")
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()

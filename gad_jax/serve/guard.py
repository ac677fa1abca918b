"""What is judged of a request before anything of it is parsed: who sent it, and how large it is.

A page of another site may not use the student through its visitor's browser: by its Origin, by a
name that resolves to this computer (DNS rebinding), or by a form.
"""

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from gad_jax.base import listening
from gad_jax.serve.errors import Refused

BODY_SECONDS = 30.0
LEAST_BODY = 2**20
MOST_BODY = 2**23
BODY_PER_TOKEN = 64
MOST_HELD = 2**26
SMALL_BODY = 2**16
"""Requests up to this size are read even where large ones hold `MOST_HELD` bytes in all."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""Their answers cannot be read by pages of other origins, and they change nothing."""

JSON_TYPES = ("", "application/json", "application/x-www-form-urlencoded")
"""No type, and what `curl -d` sends, are taken for JSON: a form of a page cannot make JSON so."""


@dataclass(frozen=True)
class Access:
    """Who may ask: names of this server ((): any), and origins of other sites ("*": all)."""

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @classmethod
    def of(cls, address: str, host: str, origins: Sequence[str] = ()) -> "Access":
        """Returns the access to a server that listens on an address, which `host` resolved to."""
        address = address.partition("%")[0]
        ip = ipaddress.ip_address(address)
        mapped = getattr(ip, "ipv4_mapped", None)
        local = (mapped or ip).is_loopback
        names = ("localhost", "127.0.0.1", "::1", address, host.lower()) if local else ()
        return cls(tuple(dict.fromkeys(names)), tuple(origins))


class Guard:
    """ASGI middleware: refuses requests by their headers."""

    def __init__(self, app: Any, access: Access, most_bytes: int) -> None:
        self.app, self.access, self.most_bytes = app, access, most_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers with an error, or passes the request on."""
        if scope["type"] == "http":
            try:
                self._check(scope["method"], Headers(scope=scope))
            except Refused as refused:
                await refused.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, method: str, headers: Headers) -> None:
        if "content-length" in headers and "transfer-encoding" in headers:
            # Two lengths: a proxy may see two requests where we see one.
            message = "the request has Content-Length and Transfer-Encoding; send one of them"
            raise Refused(400, message, "ambiguous_length", headers={"Connection": "close"})
        host = headers.get("host", "").strip().lower()
        if self.access.hosts and _name(host) not in self.access.hosts:
            message = f"Host {host!r} is not this server; use {self.access.hosts[0]}"
            raise Refused(400, message, "wrong_host")
        if method in SAFE_METHODS:
            return
        self._check_origin(host, headers)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in JSON_TYPES and not kind.endswith("+json"):
            message = f"Content-Type is {kind!r}; send application/json"
            raise Refused(415, message, "unsupported_media_type")
        if int(headers.get("content-length", "0")) > self.most_bytes:
            raise too_large(self.most_bytes)

    def _check_origin(self, host: str, headers: Headers) -> None:
        allowed = self.access.origins
        origins = headers.getlist("origin")
        foreign = [
            origin
            for origin in origins
            if not {origin, "*"} & {*allowed} and origin.lower().partition("://")[2] != host
        ]
        if not origins and headers.get("sec-fetch-site") == "cross-site" and "*" not in allowed:
            foreign = ["another site"]
        if foreign:
            message = (
                f"a page of {foreign[0]} may not ask this server; allow it with "
                "--allow_origin if it is yours"
            )
            raise Refused(403, message, "wrong_origin")


class Bodies:
    """Reads requests' content: each limited in size and time, and all together in memory."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """Returns the content. Raises Refused."""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    body += part
                    self._held += len(part)
                    if len(body) > self.most_bytes:
                        raise too_large(self.most_bytes)
                    if self._held > MOST_HELD and len(body) > SMALL_BODY:
                        raise Refused(429, "too many large requests at once; retry", "busy")
        except TimeoutError:
            message = f"the request took more than {BODY_SECONDS:.0f} seconds to arrive"
            raise Refused(408, message, "timeout", headers={"Connection": "close"}) from None
        except ClientDisconnect:
            raise Refused(499, "the client has hung up", "gone") from None
        finally:
            self._held -= len(body)
        return bytes(body)


class Connection(listening.Connection):
    """A connection whose malformed requests are answered in OpenAI's form."""

    def error_content(self, message: str) -> tuple[bytes, bytes]:
        """Returns content type and content."""
        return b"application/json", bytes(Refused(400, message, "invalid_http").response().body)


def most_bytes(context: int) -> int:
    """Returns the most bytes of a request: 64 for each token of the context, within limits."""
    return min(max(LEAST_BODY, BODY_PER_TOKEN * context), MOST_BODY)


def too_large(most: int) -> Refused:
    """Returns the refusal of a request with more than `most` bytes."""
    return Refused(413, f"the request is longer than {most / 2**20:.4g} MiB", "too_large")


def _name(host: str) -> str:
    """Returns a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]

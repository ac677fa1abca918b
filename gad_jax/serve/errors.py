"""Errors in OpenAI's form, whatever goes wrong with a request."""

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gad_jax.base.errors import UserError

RETRY_SECONDS = 2
LONGEST_MESSAGE = 1000
"""Characters; a message may quote what a client sent."""


class Refused(UserError):
    """An error response: its HTTP status, and OpenAI's `code` and `param` (the field at fault)."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        message = self.message
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]}…"
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Returns the HTTP response."""
        headers = self.headers
        if self.status in (429, 503):
            headers = {"Retry-After": str(RETRY_SECONDS)} | headers
        return JSONResponse(self.body, self.status, headers=headers)


async def answer_refusal(request: Request, error: Exception) -> Response:
    """Answers a request with a mistake in it."""
    if not isinstance(error, Refused):
        error = Refused(400, str(error), "invalid_request")
    return error.response()


async def answer_http(request: Request, error: Exception) -> Response:
    """Answers a request for what is not there."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        message = f"{asked} is not served here; POST /v1/chat/completions is"
        return Refused(404, message, "not_found", headers=error.headers).response()
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{asked} is not allowed; use {allowed or 'another method'}"
        return Refused(405, message, "method_not_allowed", headers=error.headers).response()
    return Refused(error.status_code, error.detail, "http_error", headers=error.headers).response()


async def answer_fault(request: Request, error: Exception) -> Response:
    """Answers where the server itself is at fault; the error goes to its log."""
    message = "the server failed to answer this request; its log says why"
    return Refused(500, message, "internal_error").response()


HANDLERS: dict[Any, Any] = {
    UserError: answer_refusal,
    HTTPException: answer_http,
    Exception: answer_fault,
}
"""Starlette's exception handlers of the whole application."""

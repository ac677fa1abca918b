"""A thin client of OpenAI-compatible APIs: every response is checked, every retry is bounded.

| the server does | the client does |
|---|---|
| 408, 409, 425, 429, 5xx; dropped connection; timeout; truncated or broken response | retries |
| `Retry-After` (seconds or a date) | waits that long, or gives up if `max_wait` is less |
| 429, or any of these with `Retry-After` | counts as waiting, not as one of the attempts |
| 400, 413 or 422 about this prompt (too long, filtered) | raises PromptRefused |
| quota used up; any other 3xx or 4xx | raises UserError: other requests would fail as well |

A retry carries the same Idempotency-Key: a server that honours it bills the request once.
"""

import asyncio
import contextlib
import email.utils
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import httpx2
import tenacity

from gad_jax.base import redaction
from gad_jax.base.errors import UserError
from gad_jax.base.redaction import redact
from gad_jax.teacher.pace import Pace
from gad_jax.teacher.wire import BadResponse, Reply, read_failure, read_reply

T = TypeVar("T")

RETRIED = {408, 409, 425, 429}
BUSY = {429, 503, 529}
ABOUT_THE_PROMPT = re.compile(
    "context_length|string_above_max|too_long|too_large|content_filter|content_policy|invalid_prompt"
)
QUOTA = re.compile("insufficient_quota|billing|credit")
MAX_RESPONSE_BYTES = 64 * 2**20


class PromptRefused(Exception):
    """The server refuses this prompt, but may answer others."""


class Unanswered(Exception):
    """A request got no usable response within its attempts or its time."""


@dataclass(frozen=True)
class Endpoint:
    """The address of a model. The key is the value of the environment variable `key_variable`.

    It is read when a client is made and never stored. No key is sent if the variable is not set.
    """

    base_url: str
    model: str
    key_variable: str = ""

    def __post_init__(self) -> None:
        if self.key_variable and (
            not re.fullmatch(r"[A-Za-z_]\w*", self.key_variable)
            or redaction.looks_secret(self.key_variable)
        ):
            raise ValueError(
                "key_variable is the name of an environment variable that holds the key, never "
                "the key itself; export the key under a name such as TEACHER_API_KEY"
            )
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", self.base_url):
            raise ValueError(
                f"base_url={redact(self.base_url)!r} must be like https://host/v1, without user, "
                "query or fragment"
            )
        if not self.model.strip():
            raise ValueError("model must not be empty")

    def key(self) -> str:
        """Returns the key, empty if there is none. Raises UserError if no HTTP header can carry it,
        without showing it."""
        redaction.protect(self.key_variable)
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise UserError(
                f"the environment variable {self.key_variable} does not hold a key: it has blanks "
                "or other characters that no key has; export it again"
            )
        return key


@dataclass(frozen=True)
class Patience:
    """How long one request is retried: attempts, seconds per attempt, seconds of waiting in all.

    A rejection by the rate limit does not count as an attempt: the server reaches every request in
    time.
    """

    attempts: int = 8
    timeout: float = 600.0
    max_wait: float = 900.0
    first_wait: float = 0.5


class _Retry(Exception):
    """An attempt failed in a way that may pass. The server may have said when to retry."""

    def __init__(self, reason: str, after: float = 0.0, rate_limited: bool = False) -> None:
        super().__init__(reason)
        self.after, self.rate_limited = after, rate_limited


class _RetryPolicy:
    """When one request is retried, in the form that tenacity wants."""

    def __init__(self, patience: Patience, attempts: int, hurried: Callable[[], bool]) -> None:
        self._patience, self._attempts, self._hurried = patience, attempts, hurried
        self._rate_limited = 0
        self._backoff = tenacity.wait_random_exponential(patience.first_wait, max=60)

    def stop(self, state: tenacity.RetryCallState) -> bool:
        """Whether the request is given up."""
        self._rate_limited += _failure(state).rate_limited
        exhausted = state.attempt_number - self._rate_limited >= self._attempts
        late = state.idle_for + state.upcoming_sleep > self._patience.max_wait
        return exhausted or late or self._hurried()

    def wait(self, state: tenacity.RetryCallState) -> float:
        """The seconds before the next attempt."""
        after = _failure(state).after
        if not after:
            return self._backoff(state)
        # Up to ten times what the server said, if it rejects again: requests that were rejected
        # together would otherwise come back together, and be rejected again.
        return max(1.1 * after, min(self._backoff(state), 10 * after))


def _failure(state: tenacity.RetryCallState) -> _Retry:
    error = state.outcome and state.outcome.exception()
    assert isinstance(error, _Retry)  # nothing else is retried
    return error


class Client:
    """Sends requests to one endpoint; used within `async with`, for any number of requests."""

    def __init__(
        self, endpoint: Endpoint, patience: Patience | None = None, pace: Pace | None = None
    ) -> None:
        self.endpoint = endpoint
        self.patience = patience or Patience()
        self.pace = pace or Pace(16)
        self.attempts = 0
        self.faults: dict[str, int] = {}
        self._hurry = asyncio.Event()
        key = endpoint.key()
        local = re.match(r"https?://(localhost|127\.|\[::1\])", endpoint.base_url) is not None
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self.patience.timeout,
            # `pace` limits the requests in flight; the default of 100 connections would cap it.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=not local,  # a proxy does not reach this computer
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.aclose()

    def hurry(self) -> None:
        """Makes every request that is not in flight give up (Unanswered) instead of waiting."""
        self._hurry.set()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        parameters: Mapping[str, Any] | None = None,
        idempotency_key: str = "",
    ) -> Reply:
        """Returns the reply to a conversation.

        `parameters` are those of the API (temperature, max_tokens, n, …). Raises PromptRefused,
        Unanswered, or UserError if any other request would fail as well.
        """
        body = {
            **(parameters or {}),
            "model": self.endpoint.model,
            "messages": [dict(message) for message in messages],
        }
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return await self.request(
            "POST", "chat/completions", read_reply, json=body, headers=headers
        )

    async def request(
        self,
        method: str,
        path: str,
        read: Callable[[bytes], T],
        *,
        attempts: int = 0,
        most_bytes: int = MAX_RESPONSE_BYTES,
        **content: Any,
    ) -> T:
        """Sends a request and returns `read(body)` of its response, with as many attempts as
        `attempts` or else `patience` allows; `content` is as for httpx.

        `read` raises BadResponse for a body that should be requested again. Raises as `chat` does.
        """
        attempts = attempts or self.patience.attempts
        policy = _RetryPolicy(self.patience, attempts, self._hurry.is_set)
        retrying = tenacity.AsyncRetrying(
            sleep=self._sleep,
            retry=tenacity.retry_if_exception_type(_Retry),
            stop=policy.stop,
            wait=policy.wait,
            reraise=True,
        )
        url = f"{self.endpoint.base_url.rstrip('/')}/{path}"
        try:
            return await retrying(self._attempt, method, url, read, most_bytes, content)
        except _Retry as error:
            tries = retrying.statistics.get("attempt_number", 1)
            raise Unanswered(f"{error}, {tries} attempts") from None

    async def _attempt(
        self,
        method: str,
        url: str,
        read: Callable[[bytes], T],
        most_bytes: int,
        content: dict[str, Any],
    ) -> T:
        try:
            async with self.pace.place(), asyncio.timeout(self.patience.timeout):
                if self._hurry.is_set():
                    raise _Retry("stopped before it was sent")
                self.attempts += 1
                status, headers, body = await self._send(method, url, most_bytes, content)
            if not 200 <= status < 300:
                self._raise_for(status, headers, body)
            reply = read(body)
        except TimeoutError:
            self._fault(f"no answer within {self.patience.timeout:g} s")
        except httpx2.TransportError as error:
            self._fault(f"connection lost ({type(error).__name__})")
        except (httpx2.DecodingError, BadResponse) as error:
            self._fault(str(error))
        else:
            self.pace.accepted()
            return reply

    async def _send(
        self, method: str, url: str, most_bytes: int, content: dict[str, Any]
    ) -> tuple[int, Mapping[str, str], bytes]:
        body = bytearray()
        async with self._http.stream(method, url, **content) as response:
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > most_bytes:
                    raise BadResponse(f"the body is longer than {most_bytes >> 20} MiB")
        return response.status_code, response.headers, bytes(body)

    def _raise_for(self, status: int, headers: Mapping[str, str], body: bytes) -> NoReturn:
        """Raises the exception for a response with an error status."""
        code, message = read_failure(body)
        said = redact(" ".join(message.split()))[:300]
        if status in RETRIED or status >= 500:
            if status == 429 and QUOTA.search(code):
                raise UserError(f"{self._who()}: the quota is used up ({said}); raise it")
            if status in BUSY:
                self.pace.rejected()
            after = retry_after(headers, time.time())
            self._fault(f"status {status}", after, rate_limited=status == 429 or after > 0)
        if is_about_the_prompt(status, code):
            raise PromptRefused(f"status {status}: {said or code}")
        raise UserError(
            f"{self._who()} answered with status {status}{f' ({said})' if said else ''}"
            f"; {self._advice(status)}"
        )

    def _fault(self, reason: str, after: float = 0.0, rate_limited: bool = False) -> NoReturn:
        self.faults[reason] = self.faults.get(reason, 0) + 1
        raise _Retry(reason, after, rate_limited) from None

    def _who(self) -> str:
        return f"{self.endpoint.base_url}, model {self.endpoint.model}"

    def _advice(self, status: int) -> str:
        variable = self.endpoint.key_variable
        if status in (401, 403):
            if not variable:
                return "it wants a key: name the environment variable that holds it"
            state = "is wrong or may not do this" if os.environ.get(variable) else "is not set"
            return f"the key in the environment variable {variable} {state}"
        if status == 404 or 300 <= status < 400:
            return "check base URL and model (the URL usually ends in /v1)"
        return "change what it complains of"


def is_about_the_prompt(status: int, code: str) -> bool:
    """Whether an error is about this prompt, so that other prompts may be answered."""
    return status in (400, 413, 422) and (status == 413 or bool(ABOUT_THE_PROMPT.search(code)))


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Returns the seconds that a response asks us to wait, 0 if it does not say."""
    milliseconds, value = headers.get("retry-after-ms", ""), headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", milliseconds):
        return float(milliseconds) / 1000
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError):
        return 0.0

"""A thin client of OpenAI-compatible endpoints: every body is checked, every fault has a limit.

| the server does | the client does |
|---|---|
| 408, 409, 425, 429, 5xx; lost connection; time-out; short or broken body | asks again |
| `Retry-After` (seconds or a date) | waits that long, or gives up if `max_wait` is less |
| 429, or any of these with `Retry-After` | counts as waiting, not as one of the attempts |
| 400, 413 or 422 about this prompt (too long, filtered) | raises PromptRefused |
| quota used up; any other 3xx or 4xx | raises UserError: no request would fare better |

A request that is sent again carries the same Idempotency-Key: a server that honours it bills once.
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
from gad_jax.teacher.wire import BadBody, Reply, read_failure, read_reply

T = TypeVar("T")

AGAIN = {408, 409, 425, 429}
BUSY = {429, 503, 529}
ABOUT_THE_PROMPT = re.compile(
    "context_length|string_above_max|too_long|too_large|content_filter|content_policy|invalid_prompt"
)
QUOTA = re.compile("insufficient_quota|billing|credit")
MAX_BODY_BYTES = 64 * 2**20


class PromptRefused(Exception):
    """The endpoint will not answer this prompt, but may answer others."""


class Unanswered(Exception):
    """A request got no usable answer in the attempts or the time that it had."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked. The key is the value of the environment variable `key_variable`,
    read when a client is made and never stored; no key is sent when it is not set."""

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
        """Returns the key, empty when there is none. Raises UserError for one that no header can
        carry, without showing it."""
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
    """How long one request is tried: attempts, seconds of each, seconds waited between them.

    Being turned away is no attempt: a server that limits the rate gets to every request in time.
    """

    attempts: int = 8
    timeout: float = 600.0
    max_wait: float = 900.0
    first_wait: float = 0.5


class _Again(Exception):
    """An attempt failed in a way that may pass; the server may have said when."""

    def __init__(self, reason: str, after: float = 0.0, turned_away: bool = False) -> None:
        super().__init__(reason)
        self.after, self.turned_away = after, turned_away


class Client:
    """Asks one endpoint; used within `async with`. One client serves any number of requests."""

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
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=not local,  # a proxy does not reach this computer
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.aclose()

    def hurry(self) -> None:
        """Has every request that is not on its way give up (Unanswered) instead of waiting."""
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
        Unanswered, or UserError where asking anything else would fail as well.
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
        most_bytes: int = MAX_BODY_BYTES,
        **content: Any,
    ) -> T:
        """Returns what `read` makes of the body of the reply to a request, after as many attempts
        as `patience` or else `attempts` allows; `content` is as for httpx.

        `read` raises BadBody for a body that should be asked for again. Raises as `chat` does.
        """
        patience = self.patience
        attempts = attempts or patience.attempts
        turned_away = 0

        def failure(state: tenacity.RetryCallState) -> _Again:
            error = state.outcome and state.outcome.exception()
            assert isinstance(error, _Again)  # nothing else is tried again
            return error

        def stop(state: tenacity.RetryCallState) -> bool:
            nonlocal turned_away
            turned_away += failure(state).turned_away
            exhausted = state.attempt_number - turned_away >= attempts
            late = state.idle_for + state.upcoming_sleep > patience.max_wait
            return exhausted or late or self._hurry.is_set()

        backoff = tenacity.wait_random_exponential(patience.first_wait, max=60)

        def wait(state: tenacity.RetryCallState) -> float:
            after = failure(state).after
            if not after:
                return backoff(state)
            # Up to ten times what was asked, when it happens again: those who were turned away
            # together are turned away again when they come back together.
            return max(1.1 * after, min(backoff(state), 10 * after))

        retrying = tenacity.AsyncRetrying(
            sleep=self._sleep,
            retry=tenacity.retry_if_exception_type(_Again),
            stop=stop,
            wait=wait,
            reraise=True,
        )
        url = f"{self.endpoint.base_url.rstrip('/')}/{path}"
        try:
            return await retrying(self._attempt, method, url, read, most_bytes, content)
        except _Again as error:
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
                    raise _Again("stopped before it was sent")
                self.attempts += 1
                status, headers, body = await self._send(method, url, most_bytes, content)
            if not 200 <= status < 300:
                self._judge(status, headers, body)
            reply = read(body)
        except TimeoutError:
            self._fault(f"no answer within {self.patience.timeout:g} s")
        except httpx2.TransportError as error:
            self._fault(f"connection lost ({type(error).__name__})")
        except (httpx2.DecodingError, BadBody) as error:
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
                    raise BadBody(f"the body is longer than {most_bytes >> 20} MiB")
        return response.status_code, response.headers, bytes(body)

    def _judge(self, status: int, headers: Mapping[str, str], body: bytes) -> NoReturn:
        """Raises what a failed response means."""
        code, message = read_failure(body)
        said = redact(" ".join(message.split()))[:300]
        if status in AGAIN or status >= 500:
            if status == 429 and QUOTA.search(code):
                raise UserError(f"{self._who()}: the quota is used up ({said}); raise it")
            if status in BUSY:
                self.pace.rejected()
            after = retry_after(headers, time.time())
            self._fault(f"status {status}", after, turned_away=status == 429 or after > 0)
        if is_about_the_prompt(status, code):
            raise PromptRefused(f"status {status}: {said or code}")
        raise UserError(
            f"{self._who()} answered with status {status}{f' ({said})' if said else ''}"
            f"; {self._advice(status)}"
        )

    def _fault(self, reason: str, after: float = 0.0, turned_away: bool = False) -> NoReturn:
        self.faults[reason] = self.faults.get(reason, 0) + 1
        raise _Again(reason, after, turned_away) from None

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
    """Whether a failure is of this prompt, so that others may be answered."""
    return status in (400, 413, 422) and (status == 413 or bool(ABOUT_THE_PROMPT.search(code)))


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Returns the seconds that a response asks to wait, 0 if it does not say."""
    milliseconds, value = headers.get("retry-after-ms", ""), headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", milliseconds):
        return float(milliseconds) / 1000
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError):
        return 0.0

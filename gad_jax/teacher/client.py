"""A thin client of OpenAI-compatible APIs: every response is checked, every retry is bounded.

| the server does | the client does |
|---|---|
| 408, 409, 425, 429, 5xx; dropped connection; timeout; truncated or broken response | retries |
| `Retry-After` (seconds or a date) | waits that long, or gives up if `max_wait` is less |
| 429, or any of these with `Retry-After` | counts as waiting, not as one of the attempts |
| an error about this prompt (too long, filtered) | raises PromptRefused |
| 400, 403, 422 and other 4xx that may be about it | raises Rejected |
| quota used up, wrong key or model; 3xx | raises UserError: other requests would fail as well |
| 200 with an error in the body | as the status that its code stands for |
| no connection, and there never was one | raises UserError within seconds |

`failures` has the rules. A retry carries the same Idempotency-Key: a server that honours it bills
the request once.
"""

import asyncio
import contextlib
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
from gad_jax.teacher import network
from gad_jax.teacher.failures import Failure, Follows, said
from gad_jax.teacher.pace import Pace
from gad_jax.teacher.retrying import Patience, Retry, RetryPolicy, retry_after
from gad_jax.teacher.wire import BadResponse, BrokenOff, Reply, read_failure, read_reply

T = TypeVar("T")

BUSY = {429, 503, 529}
MAX_RESPONSE_BYTES = 64 * 2**20
MOST_FAULTS = 30
"""Kinds of faults that are counted apart; a server may send a new code with each error."""


class PromptRefused(Exception):
    """The server refuses this prompt, but may answer others."""


class Rejected(UserError):
    """The server rejects a request, and does not say whether others will fare the same. `reason`
    is for the record of this prompt. If other requests are answered, only this one was refused."""

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


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

    @property
    def unset_variable(self) -> str:
        """The variable of the key where it holds none; empty if it does, or none is named."""
        return "" if not self.key_variable or self.key() else self.key_variable

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
        self._reached = False
        key = endpoint.key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = network.make_http(endpoint.base_url, headers, self.patience.timeout)

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
        policy = RetryPolicy(self.patience, attempts, self._hurry.is_set)
        retrying = tenacity.AsyncRetrying(
            sleep=self._sleep,
            retry=tenacity.retry_if_exception_type(Retry),
            stop=policy.stop,
            wait=policy.wait,
            reraise=True,
        )
        url = f"{self.endpoint.base_url.rstrip('/')}/{path}"
        try:
            return await retrying(self._attempt, method, url, read, most_bytes, content)
        except Retry as error:
            if error.unreached and not self._hurry.is_set():
                raise UserError(self._unreachable(error.unreached)) from None
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
        headers: Mapping[str, str] = {}
        try:
            async with self.pace.place(), asyncio.timeout(self.patience.timeout):
                if self._hurry.is_set():
                    raise Retry("stopped before it was sent")
                self.attempts += 1
                status, headers, body = await self._send(method, url, most_bytes, content)
            self._reached = True
            if not 200 <= status < 300:
                self._raise_for(status, headers, read_failure(body))
            reply = read(body)
        except TimeoutError:
            self._fault(f"no answer within {self.patience.timeout:g} s")
        except BrokenOff as error:
            self._raise_for(error.failure.status, headers, error.failure, in_reply=True)
        except BadResponse as error:
            self._fault(str(error))
        except httpx2.RequestError as error:
            self._lost(error)
        else:
            self.pace.accepted()
            return reply

    def _lost(self, error: httpx2.RequestError) -> NoReturn:
        """Raises the exception for a request without a whole response."""
        if isinstance(error, httpx2.DecodingError):
            self._fault("the body cannot be decompressed")
        base_url, unreached = self.endpoint.base_url, ""
        if not self._reached:
            if sentence := network.hopeless(error, base_url):
                raise UserError(sentence + self._unset()) from None
            unreached = network.unreached(error, base_url)
        self._fault(f"connection lost ({type(error).__name__})", unreached=unreached)

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

    def _raise_for(
        self, status: int, headers: Mapping[str, str], failure: Failure, in_reply: bool = False
    ) -> NoReturn:
        """Raises the exception for a response with an error status, or with one in its body."""
        words = f" ({failure.words})" if failure.words else ""
        follows = failure.follows(status)
        if follows is Follows.RETRY:
            if status in BUSY:
                self.pace.rejected()
            after = retry_after(headers, time.time())
            reason = f"status {status}"
            if in_reply:
                code = said(failure.code)[:40]
                reason = f"status 200 with an error{f' {code}' if code else ''}"
            limited = status == 429 or after > 0
            self._fault(reason, after, limited, words=words if in_reply and failure.message else "")
        if follows is Follows.PROMPT:
            raise PromptRefused(f"status {status}: {failure.words}")
        if status == 429:
            raise UserError(f"{self._who()}: the quota is used up{words}; raise it")
        sentence = f"{self._who()} answered with status {status}{words}; {self._advice(status)}"
        if follows is Follows.DOUBT:
            raise Rejected(sentence, f"status {status}: {failure.words or 'no reason is given'}")
        raise UserError(sentence)

    def _fault(
        self,
        reason: str,
        after: float = 0.0,
        rate_limited: bool = False,
        words: str = "",
        unreached: str = "",
    ) -> NoReturn:
        known = reason in self.faults or len(self.faults) < MOST_FAULTS
        kind = reason if known else "other faults"
        self.faults[kind] = self.faults.get(kind, 0) + 1
        raise Retry(reason + words, after, rate_limited, unreached) from None

    def _unreachable(self, why: str) -> str:
        return (
            f"{self.endpoint.base_url} cannot be reached ({why}); see whether the server runs and "
            f"the URL is right{self._unset()}"
        )

    def _unset(self) -> str:
        """Returns a hint that the key is not set either, where one is expected."""
        unset = self.endpoint.unset_variable
        return f"; the environment variable {unset} is not set either" if unset else ""

    def _who(self) -> str:
        return f"{self.endpoint.base_url}, model {self.endpoint.model}"

    def _advice(self, status: int) -> str:
        variable = self.endpoint.key_variable
        if status in (401, 403):
            if not variable:
                return "it wants a key: name the environment variable that holds it"
            state = "is wrong or may not do this" if os.environ.get(variable) else "is not set"
            return f"the key in the environment variable {variable} {state}"
        if status == 402:
            return "the account cannot pay for it"
        if status == 407:
            return "the proxy wants a login: set it in HTTP_PROXY or HTTPS_PROXY"
        if status == 404 or 300 <= status < 400:
            return "check base URL and model (the URL usually ends in /v1)"
        return "change what it complains of"

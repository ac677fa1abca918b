"""When a request that failed is sent again, and when it is given up."""

import email.utils
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import tenacity

UNREACHED_SECONDS = 3.0
"""How long a server is tried that cannot be connected to and has never answered."""


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


class Retry(Exception):
    """An attempt failed in a way that may pass. The server may have said when to retry.
    `unreached` says why no connection to a server was possible that has never answered."""

    def __init__(
        self, reason: str, after: float = 0.0, rate_limited: bool = False, unreached: str = ""
    ) -> None:
        super().__init__(reason)
        self.after, self.rate_limited, self.unreached = after, rate_limited, unreached


class RetryPolicy:
    """When one request is retried, in the form that tenacity wants."""

    def __init__(self, patience: Patience, attempts: int, hurried: Callable[[], bool]) -> None:
        self._patience, self._attempts, self._hurried = patience, attempts, hurried
        self._rate_limited = 0
        self._backoff = tenacity.wait_random_exponential(patience.first_wait, max=60)

    def stop(self, state: tenacity.RetryCallState) -> bool:
        """Whether the request is given up."""
        failure = _failure(state)
        self._rate_limited += failure.rate_limited
        exhausted = state.attempt_number - self._rate_limited >= self._attempts
        late = state.idle_for + state.upcoming_sleep > self._patience.max_wait
        since_start = state.seconds_since_start or 0.0
        # A second attempt, as a server may be starting; then at once, not after a minute.
        unreached = failure.unreached != "" and state.attempt_number > 1
        hopeless = unreached and since_start + state.upcoming_sleep > UNREACHED_SECONDS
        return exhausted or late or hopeless or self._hurried()

    def wait(self, state: tenacity.RetryCallState) -> float:
        """The seconds before the next attempt."""
        failure = _failure(state)
        if failure.unreached:
            return min(self._backoff(state), UNREACHED_SECONDS / 3)
        if not failure.after:
            return self._backoff(state)
        # Up to ten times what the server said, if it rejects again: requests that were rejected
        # together would otherwise come back together, and be rejected again.
        return max(1.1 * failure.after, min(self._backoff(state), 10 * failure.after))


def _failure(state: tenacity.RetryCallState) -> Retry:
    error = state.outcome and state.outcome.exception()
    assert isinstance(error, Retry)  # nothing else is retried
    return error


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Returns the seconds that a response asks us to wait, 0 if it does not say."""
    milliseconds, value = headers.get("retry-after-ms", ""), headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", milliseconds):
        return float(milliseconds) / 1000
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0

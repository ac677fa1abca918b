"""How many requests are in flight at once: fewer while the server rejects some as too many."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

PERIOD = 1.0
FEW, MANY = 0.02, 0.1
"""Shares of rejected requests: below the first the limit rises, above the second it falls."""
MOST_CUT = 0.5


class Pace:
    """At most `concurrency` requests at once, and fewer under a rate limit. After a second with
    more than 10 % rejected, the limit falls by their share, at most by half. After one with less
    than 2 %, it rises by 5 %, at least by one. In between it stays: the server's own rate limit is
    reached, and used.

    A request that waits to be retried holds no place.
    """

    def __init__(self, concurrency: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = float(concurrency)
        self.in_flight = 0
        self._most = concurrency
        self._clock = clock
        self._changed_at = clock()
        self._accepted = self._rejected = 0
        self._waiting: asyncio.Condition | None = None

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Waits for a place, and holds it."""
        self._waiting = self._waiting or asyncio.Condition()
        async with self._waiting:
            await self._waiting.wait_for(lambda: self.in_flight < self.limit)
            self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            async with self._waiting:
                self._waiting.notify_all()

    def rejected(self) -> None:
        """Counts a request that the server rejected because it was busy."""
        self._rejected += 1
        self._adjust()

    def accepted(self) -> None:
        """Counts a request that the server answered."""
        self._accepted += 1
        self._adjust()

    def _adjust(self) -> None:
        now = self._clock()
        if now - self._changed_at < PERIOD:
            return
        share = self._rejected / (self._rejected + self._accepted)
        if share > MANY:
            self.limit = max(1.0, self.limit * (1 - min(share, MOST_CUT)))
        elif share < FEW:
            self.limit = min(float(self._most), self.limit + max(1.0, self.limit / 20))
        self._accepted = self._rejected = 0
        self._changed_at = now

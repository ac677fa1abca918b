"""How many requests are on the way at once: fewer while the server turns some away."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

CUT = 0.9
PERIOD = 1.0


class Pace:
    """At most `concurrency` requests at once; a tenth less after each second with a rejection, one
    twentieth (at least one) more after each second without.

    A request that waits to be sent again holds no place. The cuts are small because being turned
    away costs nothing but the request: a server's limit is reached when a few of them are.
    """

    def __init__(self, concurrency: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = float(concurrency)
        self.in_flight = 0
        self._most = concurrency
        self._clock = clock
        self._changed_at = clock()
        self._waiting: asyncio.Condition | None = None

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Waits for one of the places, and holds it."""
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
        """Is told that the server was too busy for a request."""
        if self._period_is_over():
            self.limit = max(1.0, self.limit * CUT)

    def accepted(self) -> None:
        """Is told that the server answered a request."""
        if self.limit < self._most and self._period_is_over():
            self.limit = min(self._most, self.limit + max(1.0, self.limit / 20))

    def _period_is_over(self) -> bool:
        now = self._clock()
        over = now - self._changed_at >= PERIOD
        if over:
            self._changed_at = now
        return over

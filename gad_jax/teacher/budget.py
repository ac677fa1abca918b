"""What was spent, and whether the caps allow the next request."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple


class Use(NamedTuple):
    """The use of an API: requests, and tokens that were billed."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: "Use") -> "Use":
        """Returns the sum."""
        return Use(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Use") -> "Use":
        """Returns the difference."""
        return Use(*(a - b for a, b in zip(self, other, strict=True)))

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Prices:
    """Prices per million tokens, in any one currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def cost(self, use: Use) -> float:
        """Returns what the tokens cost."""
        return (use.prompt_tokens * self.prompt + use.completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Caps:
    """Caps on what a file may cost over all runs; infinity is no cap."""

    requests: int | float = math.inf
    tokens: int | float = math.inf
    cost: int | float = math.inf


class Budget:
    """Keeps what is spent, plus what is promised to requests in flight, below the caps.

    A request is promised the most that it can use, so no response exceeds a cap. When the response
    comes, what it used is counted and the rest of the promise is free again.
    """

    def __init__(self, caps: Caps, prices: Prices, spent: Use) -> None:
        self.caps, self.prices, self.spent = caps, prices, spent
        self._promised = Use()
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def promise(self, most: Use) -> AsyncIterator[bool]:
        """Reserves `most` for a request, and yields True. Yields False, and reserves nothing, if
        it does not fit even after every other request has been settled."""

        def fits() -> bool:
            return self.allows(self.spent.plus(self._promised).plus(most))

        async with self._changed:
            await self._changed.wait_for(lambda: fits() or self._promised == Use())
            granted = fits()
            self._promised = self._promised.plus(most) if granted else self._promised
        try:
            yield granted
        finally:
            self._promised = self._promised.minus(most) if granted else self._promised
            async with self._changed:
                self._changed.notify_all()

    def settle(self, used: Use) -> None:
        """Counts what an answered request used."""
        self.spent = self.spent.plus(used)

    @property
    def cost(self) -> float:
        """What was spent, in the currency of the prices."""
        return self.prices.cost(self.spent)

    def allows(self, use: Use) -> bool:
        """Returns whether this total use is within the caps."""
        caps = self.caps
        return (
            use.requests <= caps.requests
            and use.tokens <= caps.tokens
            and self.prices.cost(use) <= caps.cost
        )

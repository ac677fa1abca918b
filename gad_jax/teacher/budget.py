"""What has been spent, and whether the next request may be."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple


class Use(NamedTuple):
    """What requests took: how many, and the tokens that were paid for."""

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
        """Of prompts and completions."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Prices:
    """Currency per million tokens; the currency is the user's."""

    prompt: float = 0.0
    completion: float = 0.0

    def cost(self, use: Use) -> float:
        """Returns what the tokens cost."""
        return (use.prompt_tokens * self.prompt + use.completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Caps:
    """What may be spent on a file over all runs; infinity: no cap."""

    requests: int | float = math.inf
    tokens: int | float = math.inf
    cost: int | float = math.inf


class Budget:
    """Keeps what is spent and what is promised to requests on the way below the caps.

    A request is promised the most that it can take, so that no answer exceeds a cap; when it is
    answered, what it took is counted and the rest is free again.
    """

    def __init__(self, caps: Caps, prices: Prices, spent: Use) -> None:
        self.caps, self.prices, self.spent = caps, prices, spent
        self._promised = Use()
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def promise(self, most: Use) -> AsyncIterator[bool]:
        """Holds `most` for a request; gives False, holding nothing, if it does not fit even when
        every other request has been settled."""

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
        """Counts what an answered request took."""
        self.spent = self.spent.plus(used)

    @property
    def cost(self) -> float:
        """What was spent, in the prices' currency."""
        return self.prices.cost(self.spent)

    def allows(self, use: Use) -> bool:
        """Returns whether so much in all is below the caps."""
        caps = self.caps
        return (
            use.requests <= caps.requests
            and use.tokens <= caps.tokens
            and self.prices.cost(use) <= caps.cost
        )

"""Caps that no answer exceeds, and requests that wait for what others may give back."""

import asyncio
import math

import pytest

from gad_jax.teacher.budget import Budget, Caps, Prices, Use


def test_costs_by_hand() -> None:
    use = Use(2, 1_000_000, 500_000).plus(Use(1, 500_000, 0)).minus(Use(1, 0, 0))
    assert use == Use(2, 1_500_000, 500_000)
    assert use.tokens == 2_000_000
    assert Prices(2.0, 8.0).cost(use) == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("caps", "granted"),
    [
        (Caps(), 20),
        (Caps(requests=7), 7),
        (Caps(tokens=100), 10),  # 10 tokens each in the end
        (Caps(cost=60e-6), 6),  # 5 × 0 + 5 × 2 each
        (Caps(tokens=14), 0),  # the most is 15
    ],
)
def test_a_cap_is_used_up_and_never_exceeded(caps: Caps, granted: int) -> None:
    async def run() -> tuple[int, Budget]:
        budget, answered = Budget(caps, Prices(0.0, 2.0), Use()), 0

        async def ask() -> None:
            nonlocal answered
            async with budget.promise(Use(1, 5, 10)) as fits:
                if fits:
                    await asyncio.sleep(0)
                    budget.settle(Use(1, 5, 5))
                    answered += 1

        await asyncio.gather(*(ask() for _ in range(20)))
        return answered, budget

    answered, budget = asyncio.run(run())
    # The last promise is for the most, so up to one answer less than the cap has room for.
    assert granted - 1 <= answered <= granted
    assert budget.spent.tokens <= caps.tokens
    assert budget.cost <= caps.cost
    assert budget.spent.requests <= caps.requests
    assert math.isinf(Caps().tokens)

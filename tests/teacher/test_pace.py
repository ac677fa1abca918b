"""Fewer requests at once when the server rejects some, more when it accepts them again."""

import asyncio

import pytest

from gad_jax.teacher.client import (
    Client,
    Endpoint,
    Patience,
)
from gad_jax.teacher.pace import Pace
from tests.fault_server import FaultServer

QUICK = Patience(attempts=4, timeout=60.0, max_wait=3.0, first_wait=0.01)
QUESTION = [{"role": "user", "content": "Hello"}]


def test_the_pace_falls_when_the_server_rejects_and_rises_again() -> None:
    now = [0.0]
    pace = Pace(64, clock=lambda: now[0])
    pace.rejected()  # within the first second
    assert pace.limit == 64
    now[0] = 1
    pace.rejected()  # with the first, everything was rejected
    assert pace.limit == 32
    for second, answered, expected in ((2, 3, 32 * 0.75), (3, 19, 24), (4, 99, 24 * 1.05)):
        for _ in range(answered):
            pace.accepted()
        now[0] = second
        pace.rejected()  # one in four, in twenty, in a hundred
        assert pace.limit == pytest.approx(expected)
    for second in range(5, 100):
        now[0] = second
        pace.accepted()
    assert pace.limit == 64


def test_no_more_are_in_flight_than_the_pace_allows() -> None:
    async def run(url: str) -> None:
        async with Client(Endpoint(url, "m"), QUICK, Pace(3)) as client:
            await asyncio.gather(*(client.chat(QUESTION) for _ in range(12)))

    with FaultServer(latency=0.02) as server:
        asyncio.run(run(server.url))
    assert server.most_in_flight == 3
    assert len(server.requests) == 12

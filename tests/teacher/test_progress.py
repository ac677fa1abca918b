"""The note of a run: rate, time left, cost and faults."""

from pathlib import Path
from typing import Any

from gad_jax.teacher.budget import Budget, Caps, Prices, Use
from gad_jax.teacher.progress import cost, note
from gad_jax.teacher.questions import Teacher
from gad_jax.teacher.requests import Requests
from gad_jax.teacher.store import Store


class Counted(Requests):
    """A run with some faults."""

    faults = {"status 500": 2, "status 429": 1}  # noqa: RUF012
    note = "2 batches"

    async def run(self, *arguments: Any) -> None:
        raise NotImplementedError


def test_a_note_by_hand(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "out.jsonl")
    budget = Budget(Caps(), Prices(2.0, 8.0), Use(4, 1_000_000, 500_000))
    requests = Counted(Teacher("m", "", {}), store, budget)
    requests.answered, requests.refused = 5, 1
    text = note(requests, 20, 10.0)  # 14 are missing, at one in two seconds
    assert text == "0.5/s  left 0:00:28  1,500,000 tokens, cost 6  2 batches  3 faults"
    assert note(requests, 20, 0.0).startswith("0.0/s  left –  ")
    assert cost(Budget(Caps(), Prices(), Use(1, 2, 3))) == "5 tokens"
    store.close()

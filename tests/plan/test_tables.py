"""Tables for a terminal of 80 columns."""

import io

import pytest
from rich.console import Console

from gad_jax.distributed.chips import CHIPS
from gad_jax.distributed.hlo import Collective
from gad_jax.plan import tables
from gad_jax.plan.cards import Answer, Card, Smaller
from gad_jax.plan.duration import Duration
from gad_jax.plan.estimate import Phase, Step
from gad_jax.plan.programs import Compiled
from gad_jax.plan.report import Plan
from gad_jax.training.footprint import Need
from tests.plan.test_report import TARGET, WORK

NAMES = (
    *("seqkd: G update", "warmup: D update", "warmup: G and D update", "offpolicy: D update"),
    *("gad: G and D update", "rollout: reshard", "rollout: prefill", "rollout: decode"),
)
KINDS = (
    *("generator", "discriminator", "reference", "moments", "frozen base", "rows", "resident"),
    *("decode copy", "prompt KV cache", "KV cache", "temporary", "results"),
)
STEPS = [
    Step(stage, [Phase("rollout: prefill", 6.027e12, 1e-3, 1.51e-5, 1.39e-4, 0.0, 1e-9)], 0.001)
    for stage in ("seqkd", "warmup", "offpolicy", "gad")
]


def plan(size: int, duration: Duration | None = None, price: float = 0.0) -> Plan:
    programs = [
        Compiled(
            name,
            dict.fromkeys(KINDS, size),
            [Collective("collective-permute", 256, 64, 1_000_000, 700 * 10**9)],
            123.4,
        )
        for name in NAMES
    ]
    mesh = {"replica": 16, "fsdp": 128, "tensor": 8}
    return Plan(TARGET, CHIPS["v5p"], mesh, programs, STEPS, WORK, duration, price, "--x=1")


def shown(plan: Plan) -> str:
    text = io.StringIO()
    tables.show(plan, Console(file=text, width=80, highlight=False, markup=False))
    return text.getvalue()


@pytest.mark.parametrize("size", [10**6, 10**9, 10**12])
def test_no_line_is_longer_than_the_terminal_and_no_number_is_cut(size: int) -> None:
    said = shown(plan(size, Duration({"gad": 1_234_567}, 98_765.0), 123.45))
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    for kind in KINDS:  # in the tables of the first programs and of the others
        assert said.count(f"\n{kind}") == 2


def test_what_a_run_costs_is_said_where_it_fits() -> None:
    duration = Duration({"gad": 100}, 30.0)
    fits = shown(plan(10**6, duration, 2.0))
    assert "Steps, 100 of gad: 30 hours as predicted" in fits
    assert "At 8 × 2 an hour that costs 480.00." in fits
    assert "costs" not in shown(plan(10**6, duration))
    assert "give --rows=NUMBER" in shown(plan(10**6))
    too_large = shown(plan(10**12, duration, 2.0))
    assert "- by estimate it would fit with --x=1" in too_large
    assert "hours" not in too_large


def answer(**changes: object) -> str:
    need = Need("gad: update", {"temporary": 90 * 2**30})
    base = Answer(need, None, "", [Card("h200", STEPS[-1:], None)], [], [])
    text = io.StringIO()
    found = base.__class__(**(vars(base) | changes))
    console = Console(file=text, width=80, highlight=False, markup=False)
    tables.show_answer(found, 0.0, console)
    said = text.getvalue()
    assert max(map(len, said.splitlines())) <= 80
    return said


def test_the_smallest_card_comes_first() -> None:
    duration = Duration({"gad": 1_000}, 123.0)
    cards = [Card("h200", STEPS, duration), Card("b200", STEPS, duration)]
    smaller = [Smaller("rtx4090", "--batch.micro_batch_prompts=1 --student.remat=full", 2**30)]
    said = answer(cards=cards, smaller=smaller, missing="the compiler is missing")
    assert "Only an estimate: the compiler is missing" in said
    assert "The smallest card that holds it: h200, with 129.12 usable GiB. The run" in said
    assert said.index("h200  ") < said.index("b200  ")
    assert "1,000 of gad: 123 hours on h200" in said
    assert "- rtx4090 (1.00 GiB): --batch.micro_batch_prompts=1 --student.remat=full" in said


def test_no_card() -> None:
    said = answer(cards=[], nodes=[("h100", 4)])
    assert said.startswith("No single card holds it: the run needs 90.00 GiB")
    assert "- 4 × h100 would by estimate; ask for --target=h100:1x4" in said

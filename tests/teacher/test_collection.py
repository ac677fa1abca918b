"""Budgets that hold for the whole file, and the cost estimate of a dry run."""

import json
from pathlib import Path
from typing import Any

import pytest

from gad_jax.collect import __main__ as collect
from tests.collect.harness import flags, read
from tests.fault_server import FaultServer

pytest_plugins = ["tests.run_fixtures"]


@pytest.mark.parametrize(
    ("cap", "most"),
    [
        (("--max_requests=7",), 7),
        (("--max_total_tokens=200", "--max_new_tokens=6"), 12),  # 15 each, 40 promised
        (("--max_cost=0.0012", "--max_new_tokens=6"), 19),  # 60 millionths each, 97 promised
    ],
)
def test_a_budget_is_for_the_file_and_never_exceeded(
    cap: tuple[str, ...], most: int, prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out.jsonl"
    more = (*cap, "--prompt_price=2", "--completion_price=8")
    with FaultServer(latency=0.01) as server:
        for _ in range(2):  # the second run has nothing left to spend
            assert collect.main(flags(server, prompts, out, *more)) == 0
            assert most - 2 <= server.billed <= most
            assert "the budget is used up" in capsys.readouterr().out
    assert len(read(out)) == server.billed
    assert json.loads((tmp_path / "out.manifest.json").read_text())["ended"] == "budget"


def test_a_dry_run_counts_and_asks_nothing(prompts: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    more = ("--max_new_tokens=100", "--prompt_price=2", "--completion_price=10", "--samples=2")
    prompts.write_text("".join(f"prompt {n % 10}\n" for n in range(20)))
    with FaultServer() as server:
        assert collect.main(flags(server, prompts, out, "--dry_run", *more)) == 0
        assert not server.requests
    shown = capsys.readouterr().out
    assert "20 prompts (10 repeated), 20 responses wanted" in shown
    assert "20 to ask for; their prompts: 40 tokens (taken as 4 bytes each)" in shown
    assert "with the longest responses: 2,000 response tokens, cost 0.02008" in shown
    assert not list(tmp_path.glob("out*"))

"""A judge's tables, in the terminal and in the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gad_jax.evaluate import __main__ as evaluate
from tests.evaluate.judge.harness import shown
from tests.fault_server import FaultServer

pytest_plugins = ["tests.run_fixtures"]


def test_the_command_judges_a_run(
    run: Path, capfd: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    def choose(body: dict[str, Any]) -> str:
        pairwise = "[[tie]]" in body["messages"][0]["content"]
        first, _ = shown(body)
        if pairwise:
            return "[[1]]" if first.startswith("after") else "[[2]]"
        return "8 4" if first.startswith("after") else "4 8"

    assert evaluate.main([str(run)]) == 0
    assert "no judge is configured" in capfd.readouterr().out
    with FaultServer(answer=choose) as server:
        flags = ("--judge.model=m", f"--judge.base_url={server.url}", "--judge.key_variable=")
        assert evaluate.main([str(run), *flags]) == 0
        assert len(server.requests) == 2 * 12 * 4  # two ratings, two opponents of before
    printed = capfd.readouterr().out
    assert "m prefers the answers to those of before" in printed
    assert "100.0 [73.5, 100.0]" in printed  # 12 wins of 12: Clopper and Pearson
    page = (run / "report.html").read_text()
    assert "m rates the answers next to those of teacher" in page
    assert "12 / 0 / 0" in page
    assert "Difference: the score minus that of" in page
    assert "http-equiv" in page
    broken = refused(evaluate.main, run, "--judge.model=m", "--judge.base_url=localhost")
    assert broken.startswith("--judge.base_url=")

"""Prompts that the API refuses, in the words of every server: each costs itself alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gad_jax.collect import __main__ as collect
from gad_jax.teacher.requests import CONSECUTIVE_REJECTED
from tests.collect.harness import flags, read, write_prompts
from tests.fault_server import FaultServer, Script
from tests.teacher.bodies import ABOUT_THE_PROMPT, ABOUT_THE_RUN, UNCLEAR

pytest_plugins = ["tests.run_fixtures"]


def refusing(prompts: set[str], answer: Any) -> Script:
    return lambda number, body: answer if body["messages"][-1]["content"] in prompts else ""


def test_every_form_of_refusal_in_one_file(tmp_path: Path, capsys: Any) -> None:
    forms = [*ABOUT_THE_PROMPT, *UNCLEAR]
    prompts = write_prompts(tmp_path / "prompts.txt", 2 * len(forms))
    out = tmp_path / "out.jsonl"

    def script(number: int, body: dict[str, Any]) -> Any:
        place = int(body["messages"][-1]["content"].split()[1])
        return "" if place % 2 else forms[place // 2]

    with FaultServer(script, latency=0.05) as server:  # refusals come before the first answers
        assert collect.main(flags(server, prompts, out)) == 0
        assert server.billed == len(read(out)) == len(forms)
    failed = read(tmp_path / "out.failed.jsonl")
    assert {line["prompt_id"] for line in failed} == {
        f"prompts.txt:{2 * n + 1}" for n in range(len(forms))
    }
    shown = capsys.readouterr().out
    assert f"{len(forms)} refused, 0 unanswered" in shown
    assert f" and {len(forms) - 10} more" in shown


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("answer", [*ABOUT_THE_RUN, *UNCLEAR], ids=str)
def test_before_any_answer_a_rejection_of_all_ends_the_run(
    answer: Any, concurrency: int, prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out.jsonl"
    with FaultServer(lambda number, body: answer) as server:
        says = refused(collect.main, *flags(server, prompts, out, f"--concurrency={concurrency}"))
        assert f"answered with status {answer[0]}" in says
        assert len(server.requests) <= 2 * concurrency
    with FaultServer() as server:  # none of them was refused for good
        assert collect.main(flags(server, prompts, out)) == 0
        assert server.billed == 20


def test_a_file_with_answers_shows_that_the_settings_are_right(
    prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out.jsonl"
    write_prompts(prompts, 4)
    with FaultServer() as server:
        assert collect.main(flags(server, prompts, out)) == 0
    write_prompts(prompts, 5)
    with FaultServer(lambda number, body: UNCLEAR[0]) as server:
        says = refused(collect.main, *flags(server, prompts, out))
        assert "none of 1 responses came" in says
        assert collect.main(flags(server, prompts, out)) == 0  # nothing is left to ask
        assert len(server.requests) == 1
        manifest = json.loads((tmp_path / "out.manifest.json").read_text())
        assert manifest["missing"] == {"refused": 1, "unanswered": 0}  # by the run before
        says = refused(collect.main, *flags(server, prompts, out, "--temperature=0.5"))
        assert "answered with status 400" in says  # other parameters may be wrong


def test_a_key_that_is_revoked_on_the_way_refuses_no_prompt(
    prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out.jsonl"
    write_prompts(prompts, 200)

    def script(number: int, body: dict[str, Any]) -> Any:
        return (403, {"message": f"No {number}"}) if number >= 20 else ""

    with FaultServer(script) as server:
        says = refused(collect.main, *flags(server, prompts, out))
        assert f"{CONSECUTIVE_REJECTED} in a row got this" in says
        assert len(server.requests) < 200
    assert not any(line["final"] for line in read(tmp_path / "out.failed.jsonl"))
    with FaultServer() as server:
        assert collect.main(flags(server, prompts, out)) == 0
    assert len(read(out)) == 200


def test_a_spent_budget_waits_for_the_decision(
    prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out.jsonl"
    with FaultServer(refusing({"prompt 1"}, UNCLEAR[0]), latency=0.3) as server:
        assert collect.main(flags(server, prompts, out, "--max_requests=18")) == 0
        assert server.billed == len(read(out)) == 18
        assert [line["prompt_id"] for line in read(tmp_path / "out.failed.jsonl")] == [
            "prompts.txt:2"
        ]
    other = tmp_path / "other.jsonl"
    with FaultServer(lambda number, body: UNCLEAR[0]) as server:
        says = refused(collect.main, *flags(server, prompts, other, "--max_requests=3"))
    assert "answered with status 400" in says

"""The command against a server that fails on purpose and counts what it bills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gad_jax.collect import __main__ as collect
from gad_jax.data import sources
from tests.fault_server import FaultServer
from tests.limits import largest_file

pytest_plugins = ["tests.run_fixtures"]

ROOT = Path(__file__).parents[2]
KEY = "sk-SENTINEL0123456789abcdef"
VARIABLE = "A_TEACHERS_WORD"  # whose name does not say that it is a secret


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt {n}\n" for n in range(20)))
    return path


def flags(server: FaultServer, prompts: Path, out: Path, *more: str) -> list[str]:
    where = (f"--base_url={server.url}", "--model=m", f"--key_variable={VARIABLE}")
    return [f"--prompts={prompts}", f"--out={out}", *where, *more]


def start(*arguments: str, before: Sequence[str] = ()) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*before, sys.executable, "-m", "gad_jax.collect", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), VARIABLE: KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_through(*arguments: str) -> tuple[int, str, str]:
    run = start(*arguments)
    shown, errors = run.communicate()
    return run.returncode, shown, errors


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def names(lines: list[dict[str, Any]]) -> set[tuple[str, int]]:
    return {(line["key"], line["sample"]) for line in lines}


def test_responses_are_kept_with_all_that_made_them(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out.jsonl"
    settings = ("--samples=2", "--system=Be brief.", "--temperature=0.7", "--max_new_tokens=9")
    more = ('--parameters={"presence_penalty": 0.5}', "--prompt_price=2", "--completion_price=8")
    with FaultServer() as server:
        assert collect.main(flags(server, prompts, out, *settings, *more)) == 0
        assert server.billed == 40
        prompt_0 = {"role": "user", "content": "prompt 0"}
        sent = next(body for body in server.requests if body["messages"][-1] == prompt_0)
        assert collect.main(flags(server, prompts, out, *settings, *more)) == 0  # nothing to do
        assert len(server.requests) == 40
        assert collect.main(flags(server, prompts, out, "--samples=1")) == 0  # other parameters
        assert server.billed == 60
    parameters = {"temperature": 0.7, "max_tokens": 9, "presence_penalty": 0.5}
    system = {"role": "system", "content": "Be brief."}
    assert sent == {"model": "m", "messages": [system, prompt_0], **parameters}
    lines = read(out)
    assert len(lines) == len(names(lines)) == len({line["id"] for line in lines}) == 60
    line = next(line for line in lines if line["prompt_id"] == "prompts.txt:1")
    assert line["messages"] == [prompt_0]
    assert line["teacher_response"].endswith("to prompt 0")
    assert (line["finish_reason"], line["model"], line["teacher"]) == ("stop", "scripted-1", "m")
    assert (line["system"], line["parameters"]) == ("Be brief.", parameters)
    assert line["usage"] == {"prompt_tokens": 10, "completion_tokens": 5}
    assert line["request_id"].startswith("reply-")
    assert line["time"].endswith("+00:00")
    shown = capsys.readouterr().out
    assert "done: 40 of 40 responses" in shown
    assert "600 tokens, cost 0.0024" in shown  # 40 × (10 × 2 + 5 × 8) / 10⁶
    manifest = json.loads((out.parent / "out.manifest.json").read_text())
    assert (manifest["ended"], manifest["responses"]) == ("done", 60)
    assert manifest["finish_reasons"] == {"stop": 60}


def test_samples_of_a_prompt_become_one_row_and_the_unfinished_none(
    prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    faults = {0: "length", 1: "content_filter", 2: "empty"}
    with FaultServer(lambda number, body: faults.get(number, "")) as server:
        assert collect.main(flags(server, prompts, out, "--samples=3", "--concurrency=1")) == 0
        assert collect.main(flags(server, prompts, out, "--samples=3", "--concurrency=1")) == 0
        assert server.billed == 60  # what was paid is not asked again, whatever it is
    rows = sources.read(out)
    assert (len(rows), rows.unfinished, rows.skipped) == (20, 3, {})
    assert sorted(len(row.responses) for row in rows) == [2] * 3 + [3] * 17
    assert all(text.endswith(row.messages[0]["content"]) for row in rows for text in row.responses)
    kept = sources.read(out, keep_unfinished=True, skip_invalid=True)
    assert kept.unfinished == 0
    assert sum(len(row.responses) for row in kept) == 58  # two of them have no text


def test_a_prompt_that_fails_is_recorded_and_the_others_are_answered(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        return {"prompt 3": "400 content_filter", "prompt 4": "500"}.get(prompt, "")

    out = tmp_path / "out.jsonl"
    with FaultServer(script) as server:
        assert collect.main(flags(server, prompts, out, "--attempts=2")) == 0
    assert len(read(out)) == 18
    failed = read(tmp_path / "out.failed.jsonl")
    reasons = {line["prompt_id"]: line["reason"] for line in failed}
    assert reasons["prompts.txt:4"].startswith("refused: status 400")
    assert reasons["prompts.txt:5"] == "unanswered: status 500, 2 attempts"
    assert "1 refused, 1 unanswered" in capsys.readouterr().out
    with FaultServer() as server:
        assert collect.main(flags(server, prompts, out)) == 0
        assert server.billed == 2
    assert not (tmp_path / "out.failed.jsonl").exists()


def test_a_dead_server_ends_the_run(
    tmp_path: Path, prompts: Path, refused: Callable[..., str]
) -> None:
    with FaultServer(lambda number, body: "500") as server:
        says = refused(
            collect.main, *flags(server, prompts, tmp_path / "out.jsonl", "--attempts=1")
        )
    assert "20 requests in a row got no answer (the last: status 500" in says


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


def test_nothing_paid_is_lost_however_often_it_is_killed(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("".join(f"prompt {n}\n" for n in range(150)))
    chance = random.Random(0)
    faults = ("429 after 0.01", "500", "503", "reset", "drop", "truncate", "html", "same id")

    def script(number: int, body: dict[str, Any]) -> str:
        return chance.choice(faults) if chance.random() < 0.3 else ""

    with FaultServer(script, latency=0.02) as server:
        arguments = flags(server, prompts, out, "--concurrency=8", "--samples=2")
        kills = 0
        for _ in range(5):
            before, run = server.billed, start(*arguments)
            while server.billed < before + 40 and run.poll() is None:
                time.sleep(0.005)
            kills += run.poll() is None
            run.kill()
            run.communicate()
        with open(out, "ab") as file:
            file.write(b'{"key": "torn')
        code, shown, errors = run_through(*arguments)
        assert (code, errors) == (0, "")
        assert kills >= 4  # else nothing was proved
        lines = read(out)
        assert len(lines) == len(names(lines)) == server.billed == 300
        requests = len(server.requests)
        assert run_through(*arguments)[0] == 0
        assert len(server.requests) == requests
    assert "of 300" not in shown  # it resumed, it did not begin


def test_ctrl_c_waits_for_what_is_paid(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with FaultServer(latency=5) as server:  # longer than the second command takes to start
        run = start(*flags(server, prompts, out, "--concurrency=4"))
        while len(server.requests) < 4:
            time.sleep(0.01)
        second = start(*flags(server, prompts, out))
        says = second.communicate()[1]
        assert (second.returncode, says.count("\n")) == (2, 1)
        assert f"in use by process {run.pid} on " in says
        run.send_signal(signal.SIGINT)
        shown, errors = run.communicate()
        assert run.returncode == 0
        assert "waiting for the responses on their way" in errors
        assert server.billed == len(server.requests) == len(read(out)) < 20
    assert "stopped; the same command resumes it" in shown


def test_ctrl_c_does_not_wait_for_a_server_that_says_later(prompts: Path, tmp_path: Path) -> None:
    with FaultServer(lambda number, body: "429 after 600") as server:
        run = start(*flags(server, prompts, tmp_path / "out.jsonl"))
        while len(server.requests) < 10:
            time.sleep(0.01)
        started = time.monotonic()
        run.send_signal(signal.SIGTERM)
        run.communicate()
    assert run.returncode == 0
    assert time.monotonic() - started < 10


def test_a_file_that_cannot_grow_stays_whole(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with FaultServer() as server:
        arguments = flags(server, prompts, out, "--concurrency=1")
        run = start(*arguments, before=largest_file(kib=3))
        errors = run.communicate()[1]
        assert run.returncode == 12
        assert errors.startswith(f"{out} could not be written: File too large")
        assert 0 < len(read(out)) < 20
        assert run_through(*arguments)[0] == 0
        assert server.billed == 20  # the server honours the idempotency key
    assert len(read(out)) == 20


@pytest.mark.parametrize("fault", ["", "echo", "401"])
@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_the_key_is_nowhere(
    fault: str, debug: tuple[str, ...], prompts: Path, tmp_path: Path
) -> None:
    with FaultServer(lambda number, body: fault) as server:
        run = start(*flags(server, prompts, tmp_path / "out.jsonl", *debug))
        shown = "".join(run.communicate())
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert run.returncode == (2 if fault else 0)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert KEY.encode() not in b"".join(written)
    assert KEY not in shown


def test_mistakes_are_one_sentence(
    prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def ask(*more: str) -> str:
        given = ("--base_url=http://localhost:9/v1", "--model=m")
        return refused(
            collect.main, f"--prompts={prompts}", f"--out={tmp_path / 'o.jsonl'}", *given, *more
        )

    assert "max_cost needs prices" in ask("--max_cost=5")
    assert "max_new_tokens is needed" in ask("--max_total_tokens=5")
    assert "would all be the same" in ask("--samples=2", "--temperature=0")
    assert "parameters must be a JSON object" in ask("--parameters=[1]")
    assert "n has a flag of its own" in ask('--parameters={"n": 2}')
    assert "concurrency=0 must be greater than 0" in ask("--concurrency=0")
    assert "never the key itself" in ask("--key_variable=not a name")
    assert "must be like https://host/v1" in refused(
        collect.main, f"--prompts={prompts}", "--out=o", "--model=m", "--base_url=localhost"
    )
    prompts.write_bytes(b"fine\n\xff\n")
    assert "prompts.txt:2: not UTF-8" in ask()
    directory = tmp_path / "directory"
    directory.mkdir()
    prompts.write_text("fine\n")
    assert "cannot be read" in refused(
        collect.main, f"--prompts={prompts}", f"--out={directory}", "--model=m"
    )

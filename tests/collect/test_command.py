"""The command against a server that fails on purpose and counts what it bills."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from gad_jax.collect import __main__ as collect
from gad_jax.data import sources
from tests.collect.harness import flags, names, read, run_through, start
from tests.fault_server import FaultServer
from tests.limits import largest_file

pytest_plugins = ["tests.run_fixtures"]


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
    checked = out.with_name("out.checked.jsonl")
    assert shown.endswith(f"next: python -m gad_jax.collect check {out} --out={checked}\n")
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
        assert server.billed == 60  # what was paid is not requested again, whatever it is
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
    shown = capsys.readouterr().out
    assert "1 refused, 1 unanswered" in shown
    assert "refused prompts: prompts.txt:4" in shown
    with FaultServer() as server:
        assert collect.main(flags(server, prompts, out)) == 0
        assert server.billed == 1  # the refused prompt is not asked again unless told
        assert [line["prompt_id"] for line in read(tmp_path / "out.failed.jsonl")] == [
            "prompts.txt:4"
        ]
        assert "1 were refused in an earlier run" in capsys.readouterr().out
        assert collect.main(flags(server, prompts, out, "--retry_refused")) == 0
        assert server.billed == 2
    assert not (tmp_path / "out.failed.jsonl").exists()


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

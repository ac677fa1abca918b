"""What a run says: at its start, of odd responses, and where nothing came."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gad_jax.collect import __main__ as collect
from tests.collect.harness import VARIABLE, flags, read
from tests.fault_server import FaultServer

pytest_plugins = ["tests.run_fixtures"]


def test_a_key_that_is_not_set_is_said_at_once(
    prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    given = (f"--prompts={prompts}", f"--out={tmp_path / 'o.jsonl'}", "--model=m")
    away = "--base_url=http://127.0.0.1:9/v1"
    says = refused(collect.main, *given, away, f"--key_variable={VARIABLE}")
    assert "http://127.0.0.1:9/v1 cannot be reached (connection refused)" in says
    assert f"the environment variable {VARIABLE} is not set either" in says
    assert "is not set" not in refused(collect.main, *given, away, "--key_variable=")


def test_a_dry_run_without_a_bound_guesses(prompts: Path, tmp_path: Path, capsys: Any) -> None:
    prices = ("--prompt_price=2", "--completion_price=10")
    with FaultServer() as server:
        assert collect.main(flags(server, prompts, tmp_path / "o", "--dry_run", *prices)) == 0
    shown = capsys.readouterr().out
    assert (
        "responses of 1,024 tokens, which is a guess: 20,480 response tokens, cost 0.2049" in shown
    )
    assert "without --max_new_tokens, nothing bounds the responses" in shown


def test_no_response_at_all_is_a_failure(
    prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out.jsonl"
    with FaultServer(lambda number, body: "413") as server:
        says = refused(collect.main, *flags(server, prompts, out))
    assert "none of 20 responses came; " in says
    assert "out.failed.jsonl has the reasons" in says
    assert len(read(tmp_path / "out.failed.jsonl")) == 20


def test_odd_responses_are_named_once(prompts: Path, tmp_path: Path, capsys: Any) -> None:
    reasons = ["eos_token", "STOP", "COMPLETE", "length", "content_filter", "odd\x1b[2J", "[red]"]

    def script(number: int, body: dict[str, Any]) -> Any:
        if number == 19:
            return {"message": {"content": "lone \ud800"}}
        return {"choice": {"finish_reason": reasons[number % len(reasons)]}}

    with FaultServer(script) as server:
        assert collect.main(flags(server, prompts, tmp_path / "out.jsonl")) == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("unknown finish reasons"))
    assert line.count("odd\\x1b[2J") == line.count("[red]") == 1
    assert "STOP" not in line
    assert "1 responses had characters that no text can hold" in shown


@pytest.mark.parametrize("variable", ["PGPASSWORD", "APIKEY", "ACCESSTOKEN"])
def test_no_secret_of_the_environment_is_stored(
    variable: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    secret = "correct-horse-battery"
    monkeypatch.setenv(variable, secret)
    reply = {"id": secret, "model": secret, "choice": {"finish_reason": secret}}
    error = (500, {"error": {"code": secret, "message": secret}})
    with FaultServer(lambda number, body: error if number % 4 == 0 else reply) as server:
        assert collect.main(flags(server, prompts, tmp_path / "out.jsonl", "--attempts=99")) == 0
    stored = "".join(path.read_text() for path in tmp_path.glob("out*"))
    assert secret not in stored + "".join(capfd.readouterr())


def test_thoughts_are_stored_apart(prompts: Path, tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Any:
        text = "<think>why" if number == 0 else "<think>\nwhy\n</think>\n\nAnswer"
        return {"message": {"content": text}, "usage": None}

    out = tmp_path / "out.jsonl"
    with FaultServer(script) as server:
        assert collect.main(flags(server, prompts, out)) == 0
    lines = read(out)
    assert sorted({line["teacher_response"] for line in lines}) == ["", "Answer"]
    assert {line["reasoning"] for line in lines} == {"why"}
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["completion_tokens"] >= 20 * len("why")  # the thought was paid too


def test_a_short_key_that_a_server_echoes_everywhere_is_stored_nowhere(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    key = "k3y-9z"
    monkeypatch.setenv(VARIABLE, key)
    reply = {
        "id": f"id-{key}",
        "model": f"m {key}",
        "usage": {"prompt_tokens": key},
        "choice": {"finish_reason": f"\x1b[2J{key}"},
        "message": {"content": f"Bearer {key}", "reasoning_content": f"I got {key}"},
    }
    errors = [
        (500, {"error": {"code": key, "type": key, "message": f"\x1b]0;{key}\x07"}}),
        (400, {"error": {"code": key, "message": f"the prompt is too long, {key}"}}),
        (200, {"error": {"code": key, "message": key}}),
    ]
    script = lambda number, body: errors[number // 4] if number % 4 == 1 else reply  # noqa: E731
    with FaultServer(lambda n, body: script(n, body) if n < 12 else reply) as server:
        collect.main(flags(server, prompts, tmp_path / "out.jsonl", "--attempts=3"))
    stored = "".join(path.read_text() for path in tmp_path.glob("out*"))
    shown = "".join(capfd.readouterr())
    assert "teacher_response" in stored
    assert key not in stored + shown
    assert "\x1b" not in shown


def test_caps_that_allow_no_response_end_with_a_sentence(
    prompts: Path, tmp_path: Path, refused: Any
) -> None:
    with FaultServer() as server:
        caps = ("--max_total_tokens=2", "--max_new_tokens=1")
        said = refused(collect.main, *flags(server, prompts, tmp_path / "out.jsonl", *caps))
        assert server.requests == []
    assert said.endswith("responses came: the caps allow not even one; raise them")

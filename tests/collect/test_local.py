"""A teacher of our own answers through the real engine, in the same file as any other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gad_jax.collect import __main__ as collect
from gad_jax.data import sources

pytest_plugins = ["tests.run_fixtures"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt {n}\n" for n in range(6)))
    return path


def run(prompts: Path, out: Path, *more: str) -> int:
    flags = [f"--prompts={prompts}", f"--out={out}", "--teacher=local:random-tiny"]
    return collect.main([*flags, "--max_new_tokens=8", "--concurrency=2", *more])


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_a_run_in_parts_gives_the_answers_of_one_run(
    prompts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert run(prompts, whole, "--samples=2") == 0
    assert run(prompts, parts, "--samples=2", "--max_requests=5") == 0
    assert len(read(parts)) == 5
    assert "the budget is used up" in capfd.readouterr().out
    assert run(prompts, parts, "--samples=2") == 0

    def texts(path: Path) -> dict[str, str]:
        return {line["id"]: line["teacher_response"] for line in read(path)}

    assert texts(parts) == texts(whole)
    assert len(set(texts(whole).values())) > 10  # samples and prompts differ
    line = read(whole)[0]
    assert line["teacher"] == "local:random-tiny"
    assert line["parameters"] == {"max_tokens": 8}
    assert line["finish_reason"] in {"stop", "length"}
    assert 0 < line["usage"]["completion_tokens"] <= 8
    rows = sources.read(str(whole), keep_unfinished=True, skip_invalid=True)  # some are empty
    assert len(rows) == 6


def test_a_prompt_that_is_too_long_is_named_and_the_others_are_answered(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"id": n, "prompt": "x" * size}) + "\n"
            for n, size in (("a", 9), ("b", 90_000))
        )
    )
    assert run(prompts, out) == 0
    assert [line["prompt_id"] for line in read(out)] == ["a"]
    (failed,) = read(tmp_path / "out.failed.jsonl")
    assert failed["prompt_id"] == "b"
    assert failed["reason"].startswith("refused: it has 9")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--teacher=random-tiny"], "must be api or local:MODEL"),
        (["--teacher=local:"], "must be api or local:MODEL"),
        (["--teacher=local:random-tiny", "--model=m"], "leave it out with teacher=local"),
        (["--teacher=local:random-tiny", "--max_cost=1", "--prompt_price=1"], "has a price"),
        (["--teacher=local:random-tiny", '--parameters={"stop": "x"}'], "stop is not known"),
        (["--teacher=local:random-tiny", '--parameters={"seed": "x"}'], "seed must be an integer"),
        (["--teacher=local:random-tiny", "--temperature=-1"], "temperature=-1"),
        (["--teacher=local:nowhere"], "nowhere"),
        ([], "model must not be empty"),
    ],
)
def test_settings_that_do_not_fit(
    prompts: Path, tmp_path: Path, flags: list[str], said: str, refused: Callable[..., str]
) -> None:
    assert said in refused(collect.main, f"--prompts={prompts}", f"--out={tmp_path}/o", *flags)

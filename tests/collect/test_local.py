"""A teacher in this process answers through the real engine, in the same file as any other."""

import json
from pathlib import Path

import pytest

from gad_jax.collect import __main__ as collect
from gad_jax.data import sources
from tests.collect.harness import read, write_prompts

pytest_plugins = ["tests.run_fixtures"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.txt", 6)


def run(prompts: Path, out: Path, *more: str) -> int:
    flags = [f"--prompts={prompts}", f"--out={out}", "--teacher=local:random-tiny"]
    return collect.main([*flags, "--max_new_tokens=8", "--concurrency=2", *more])


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

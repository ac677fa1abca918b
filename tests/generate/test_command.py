"""Answers of a student to a prompt, a file and a pipe, wherever the student comes from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gad_jax.generate import __main__ as generate
from gad_jax.models import source
from gad_jax.models.builtin import tiny

pytest_plugins = ["tests.run_fixtures"]

PROMPTS = ("Name a fruit.", "Say hello to Anna.", "What is 2 + 2?")
SHORT = "--max_new_tokens=8"
SAMPLED = ("--samples=3", "--temperature=1.5")


@pytest.fixture
def answers(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Returns a function: arguments of the command → what it prints."""

    def run(*arguments: object) -> str:
        assert generate.main([SHORT, *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"id": f"row-{n}", "prompt": prompt} for n, prompt in enumerate(PROMPTS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_command_answers_as_this_process_does(
    tiny_run: Path, answers: Callable[..., str], command: Callable[..., Any]
) -> None:
    """The same samples, from one device there and eight here."""
    arguments = ("--model", tiny_run, "--prompt", PROMPTS[0], *SAMPLED)
    done = command("generate", *arguments, SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == answers(*arguments)
    assert len({*done.stdout.split("\n\n")}) > 1


def test_a_student_is_named_in_many_ways(tiny_run: Path, answers: Callable[..., str]) -> None:
    def ask(model: object) -> str:
        return answers("--model", model, "--prompt", PROMPTS[1])

    newest = ask(tiny_run)
    assert ask(tiny_run / "checkpoints" / "2") == newest
    assert ask(tiny_run / "export" / "student") == newest
    # at step 1 the student has not learnt yet
    first = ask(tiny_run / "checkpoints" / "1")
    assert first == ask("random-tiny") == ask(tiny.fetch())
    assert first != newest


def test_a_file_is_answered_row_by_row(
    tiny_run: Path, answers: Callable[..., str], prompts_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    arguments = ("--model", tiny_run, "--file", prompts_file)
    assert answers(*arguments, "--out", out) == ""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["row-0", "row-1", "row-2"]
    for row, prompt in zip(rows, PROMPTS, strict=True):
        assert row["messages"] == [{"role": "user", "content": prompt}]
        assert row["responses"] == [answers("--model", tiny_run, "--prompt", prompt)[:-1]]
    # printed, and in batches of another size
    printed = answers(*arguments, "--batch=2")
    assert [json.loads(line) for line in printed.splitlines()] == rows


def test_sampled_answers_follow_the_seed(answers: Callable[..., str], prompts_file: Path) -> None:
    def sample(seed: int, batch: int = 16) -> list[list[str]]:
        flags = (f"--seed={seed}", f"--batch={batch}", *SAMPLED)
        printed = answers("--model=random-tiny", "--file", prompts_file, *flags)
        return [json.loads(line)["responses"] for line in printed.splitlines()]

    first = sample(0)
    assert [len(group) for group in first] == [3, 3, 3]
    assert len({text for group in first for text in group}) > 3
    assert sample(0, batch=1) == first
    assert sample(1) != first


def test_an_instruction_is_wrapped_as_it_was_in_training(
    tiny_run: Path, answers: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gad_jax.data.chat import Chat

    used: list[Any] = []
    load = Chat.load.__func__

    def spy(cls: Any, directory: Any, template: Any = "alpaca", *more: Any) -> Chat:
        used.append(template)
        return load(cls, directory, template, *more)

    monkeypatch.setattr(Chat, "load", classmethod(spy))
    for model, flags in ((tiny_run, ()), ("random-tiny", ()), (tiny_run, ("--template=alpaca",))):
        answers("--model", model, "--prompt", PROMPTS[0], *flags)
    assert used == ["none", "none", "alpaca"]  # configs/tiny.yaml says none


def test_a_pipe_is_answered_line_by_line(
    tiny_run: Path, answers: Callable[..., str], command: Callable[..., Any]
) -> None:
    lines = f"{PROMPTS[0]}\n{PROMPTS[1]}\n"
    done = command("generate", "--model", tiny_run, SHORT, typed=lines)
    assert (done.returncode, done.stderr) == (0, "")
    opening, rest = done.stdout.split("\n", 1)
    assert opening.startswith(f"{tiny_run}, step 2 (gad). Each line is a new conversation")
    asked = [answers("--model", tiny_run, "--prompt", prompt) for prompt in PROMPTS[:2]]
    assert rest == f"> {asked[0]}\n> {asked[1]}\n> "


def test_mistakes_are_one_sentence(
    tiny_run: Path, tmp_path: Path, refused: Callable[..., str], prompts_file: Path
) -> None:
    def ask(*arguments: object) -> str:
        return refused(generate.main, *arguments)

    missing = tmp_path / "missing"
    assert f"'{missing}' is not a directory here" in ask("--model", missing, "--prompt=x")
    assert "did you mean 'random-tiny'?" in ask("--model=random-tyni", "--prompt=x")
    step = tiny_run / "checkpoints" / "7"
    assert "no checkpoint of step 7; it has [1, 2]" in ask("--model", step, "--prompt=x")
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    (empty / "config.yaml").write_text((tiny_run / "config.yaml").read_text())
    assert "no checkpoint" in ask("--model", empty, "--prompt=x")
    long = ask("--model=random-tiny", f"--prompt={'x' * 2000}", "--max_new_tokens=48")
    assert "tokens, and 2000 fit next to --max_new_tokens=48" in long
    assert "missing.jsonl" in ask("--model=random-tiny", "--file", f"{missing}.jsonl")
    assert "out=x.jsonl is for the answers to a file" in ask("--prompt=x", "--out=x.jsonl")
    for flags in (("--prompt=x", f"--file={prompts_file}"), ("--samples=0",), ("--top_p=0",)):
        ask(*flags)


def test_a_discriminator_does_not_answer(
    tiny_run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    from gad_jax.export import __main__ as export

    assert export.main([str(tiny_run), f"--out={tmp_path}", "--part=discriminator"]) == 0
    judge = tmp_path / "discriminator"
    says = refused(generate.main, "--model", judge, "--prompt=x")
    assert says == f"{judge} is a sequence classifier; name a causal language model"
    assert source.resolve(str(judge)) == judge

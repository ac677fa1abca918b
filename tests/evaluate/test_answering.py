"""Students compared on prompt sets: from the command line to the report, stopped and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest

from gad_jax.evaluate import __main__ as evaluate
from gad_jax.generate import __main__ as generate
from gad_jax.metrics import overlap
from tests.evaluate.sets import QUESTIONS, TEACHER

pytest_plugins = ["tests.run_fixtures"]
FLAGS = ("--max_new_tokens=8", "--batch=2", "--temperature=1.5", "--samples=2")


def arguments(run: Path, sets: Path, out: Path) -> list[str]:
    return [
        f"--model=before=random-tiny,gad={run}",
        f"--prompts=lmsys={sets}/lmsys.jsonl,{sets}/question.jsonl",
        f"--discriminator={run}",
        f"--out={out}",
        *FLAGS,
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_students_are_compared(
    tiny_run: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(tiny_run, sets, tmp_path)
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert "lmsys: 3 prompts" in printed
    assert "question: 2 prompts" in printed
    lines = read(tmp_path / "lmsys" / "gad.jsonl")
    assert [line["id"] for line in lines] == ["q0", "long", "q1", "q2"]
    assert [len(line["answers"]) for line in lines] == [2, 0, 2, 2]
    for line in (lines[0], lines[2], lines[3]):
        assert line["teacher"] == TEACHER
        assert isinstance(line["teacher_score"], float)
        for answer in line["answers"]:
            assert answer["tokens"] <= 8
            assert answer["rouge_l"] == overlap.scores(TEACHER, answer["text"])["rouge_l"]
            assert isinstance(answer["score"], float)
    assert "rouge_l" not in read(tmp_path / "question" / "before.jsonl")[0]["answers"][0]
    page = (tmp_path / "report.html").read_text()
    assert "1 more had no answer" in page
    assert "Learning curves" in page

    # the same answers as those of generate, drawn by the number of the prompt in its set
    asked = ("--model", str(tiny_run), "--prompt", QUESTIONS[0], *FLAGS)
    assert generate.main(list(asked)) == 0
    texts = [answer["text"] for answer in lines[0]["answers"]]
    assert capsys.readouterr().out == "\n\n".join(texts) + "\n"

    # a second time nothing is made again; after a crash, only what is missing
    files = sorted(tmp_path.glob("*/*.jsonl"))
    before = [path.read_bytes() for path in files]
    path = tmp_path / "lmsys" / "gad.jsonl"
    path.write_bytes(path.read_bytes()[:-300])
    assert evaluate.main(command) == 0
    assert [path.read_bytes() for path in files] == before
    assert "4 of 4" in capsys.readouterr().err
    assert evaluate.main(command) == 0
    assert " of 4" not in capsys.readouterr().err

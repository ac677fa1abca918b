"""Answers of students: means by hand, and those that a run kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from gad_jax.metrics import heldout
from gad_jax.training.report.answers import Answers, common, from_run, of_line, summary


def line(number: int, *tokens: int, teacher: int | None = 10, **measures: float) -> dict[str, Any]:
    answers = [{"text": "t", "tokens": n, "finished": n < 8, **measures} for n in tokens]
    return {
        "id": f"row-{number}",
        "prompt": f"Question {number}?",
        "teacher": "T" if teacher else None,
        "teacher_tokens": teacher,
        "answers": answers,
    }


def test_means_are_over_prompts() -> None:
    """A prompt with three answers weighs as much as one with one."""
    lines = (line(0, 2, 4, 6, rouge_l=0.5), line(1, 8, teacher=20, rouge_l=0.1))
    table = summary(Answers("gad", "set", "", lines))
    assert table["tokens"] == pytest.approx(6)  # of 4 and 8
    assert table["× teacher"] == pytest.approx(6 / 15)
    assert table["cut"] == pytest.approx(0.5)
    assert table["ROUGE-L"] == pytest.approx(0.3)
    assert next(iter(table)) == "tokens"
    assert "D score" not in table
    assert of_line(line(0, teacher=None), "tokens") is None


def test_without_the_teacher_there_is_length_and_no_overlap() -> None:
    table = summary(Answers("gad", "set", "", (line(0, 4, teacher=None),)))
    assert set(table) == {"tokens", "cut"}


def test_students_are_compared_on_common_prompts() -> None:
    a = Answers("a", "set", "", (line(0, 2), line(1), line(2, 3)))
    b = Answers("b", "set", "", (line(0), line(1, 9), line(2, 4)))
    assert [[x["id"] for x in one.lines] for one in common([a, b])] == [["row-2"], ["row-2"]]


def test_a_run_has_its_evaluations_in_order(tmp_path: Path) -> None:
    example = {
        "prompt": "p",
        "teacher": "the cat",
        "student": "the",
        "length": 2,
        "teacher_length": 3,
        "finished": True,
        "rouge_l": 0.0,
    }
    (tmp_path / "evaluations").mkdir()
    for label, step in (("after gad", 20), ("step 15", 15), ("before", 0), ("after warmup", 10)):
        result = heldout.HeldoutResult(label, step, {}, [example])
        name = label.replace(" ", "-")
        (tmp_path / "evaluations" / f"{name}.json").write_text(result.to_json())
    found = from_run(tmp_path)
    assert [one.label for one in found] == ["before", "after warmup", "after gad"]
    assert summary(found[0])["1-gram"] == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert summary(found[0])["× teacher"] == pytest.approx(2 / 3)
    assert "AUC" not in summary(found[0])
    # of a run from before teacher lengths were kept
    del example["teacher_length"]
    example["auc"] = 0.75
    path = tmp_path / "evaluations" / "before.json"
    path.write_text(
        json.dumps({"label": "before", "step": 0, "metrics": {}, "examples": [example]})
    )
    assert "× teacher" not in summary(from_run(tmp_path)[0])
    assert summary(from_run(tmp_path)[0])["AUC"] == 0.75

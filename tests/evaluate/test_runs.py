"""What a report says of runs."""

import json
import os
import re
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.evaluate import report, runs
from gad_jax.metrics.heldout import HeldoutResult
from tests.evaluate.test_report import answers


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with an evaluation before training and one after step 2."""
    run = tmp_path / "first try"
    (run / "evaluations").mkdir(parents=True)
    (run / "config.yaml").write_text("data:\n  train: mine.jsonl\nstudent:\n  path: org/small\n")
    lines = [{"step": n, "stage": "gad", "response/length": 9.0} for n in (1, 2)]
    lines[1]["evaluation/rouge_l"] = 0.3
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(run / "metrics.jsonl", (1.8e9, 1.8e9))
    for step, label, value in ((0, "before", 0.1), (2, "after gad", 0.3)):
        result = HeldoutResult(label, step, {"evaluation/rouge_l": value}, [])
        (run / "evaluations" / f"{step}.json").write_text(result.to_json())
    return run


def test_curves_begin_before_training(run: Path) -> None:
    found = runs.rows(run)
    held_out = [(row["step"], row.get("evaluation/rouge_l")) for row in found]
    assert held_out == [(0, 0.1), (1, None), (2, 0.3)]
    assert {row["stage"] for row in found} == {"gad"}
    (run / "metrics.jsonl").write_text("")
    assert runs.rows(run) == []


def test_a_report_names_its_run(run: Path) -> None:
    page = report.render(report.collect([answers("before", ["x"])], {"any": run}))
    assert "<title>first try: before</title>" in page
    said = f"{run}, teacher rows mine.jsonl, student org/small, last step 2027-01-1"
    assert said in page
    (run / "config.yaml").write_text("nonsense: 1\n")
    assert re.fullmatch(r".*first try, last step 2027-01-1\d \d\d:\d\d", runs.about(run))
    assert runs.title([], ["a", "b"]) == "a · b"
    assert runs.title([run, run], ["a"]) == "first try: a"


def test_a_damaged_evaluation_is_named(run: Path) -> None:
    path = run / "evaluations" / "2.json"
    for text in (path.read_text()[:-9], "[]", "{}", '{"label": 1}', "{" * 9000):
        path.write_text(text)
        with pytest.raises(UserError, match=r"2\.json is no evaluation of a run \(.*move it"):
            runs.rows(run)

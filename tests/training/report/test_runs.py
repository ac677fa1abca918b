"""What a report says of runs."""

import json
import os
import re
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.metrics.heldout import HeldoutResult
from gad_jax.training import digest
from gad_jax.training.report import page, runs
from tests.training.report.test_page import answers


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with an evaluation before training and one after step 2."""
    run = tmp_path / "first try"
    (run / "evaluations").mkdir(parents=True)
    settings = "data: {train: mine.jsonl}\nstudent: {path: org/small}\nbatch: {prompts: 7}\n"
    (run / "config.yaml").write_text(settings)
    lines = [{"step": n, "stage": "gad", "response/length": 9.0} for n in (1, 2)]
    lines[1]["evaluation/rouge_l"] = 0.3
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(run / "metrics.jsonl", (1.8e9, 1.8e9))
    for step, label, value in ((0, "before", 0.1), (2, "after-gad", 0.3)):
        result = HeldoutResult(label, step, {"evaluation/rouge_l": value}, [])
        (run / "evaluations" / f"{label}.json").write_text(result.to_json())
    return run


def test_curves_begin_before_training(run: Path) -> None:
    found = runs.rows(run)
    held_out = [(row["step"], row.get("evaluation/rouge_l")) for row in found]
    assert held_out == [(0, 0.1), (1, None), (2, 0.3)]
    assert {row["stage"] for row in found} == {"gad"}
    (run / "metrics.jsonl").write_text("")
    assert runs.rows(run) == []


def test_a_report_names_its_run(run: Path) -> None:
    html = page.render(page.collect([answers("before", ["x"])], {"any": run}))
    assert "<title>first try: org/small from mine.jsonl</title>" in html
    for fact in (str(run), "mine.jsonl", "org/small", "gad 2"):
        assert f"<dd>{fact}</dd>" in html
    assert "<dd>2027-01-1" in html
    assert "1 setting of first try differs from the defaults" in html
    assert "<tr><th>batch.prompts</th><td>7</td><td>256</td></tr>" in html
    about = runs.about(run)
    assert runs.title({"any": about}, ["before"]) == "first try: org/small from mine.jsonl"
    assert runs.title({"any": about, "other": about}, ["a"]) == "first try: a"
    assert runs.title({}, ["a", "b"]) == "a · b"
    (run / "config.yaml").write_text("nonsense: 1\n")
    about = runs.about(run)
    assert re.fullmatch(r"2027-01-1\d \d\d:\d\d", about.facts.pop("last step"))
    assert about.facts == {"steps": "gad 2", "directory": str(run)}
    assert runs.title({"any": about}, ["a"]) == "first try: a"


def test_a_report_names_the_teacher_that_wrote_the_rows(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {"mine.jsonl": {"teacher": "big-1"}, "two.jsonl": {"teacher": "big-2"}, "no.jsonl": []}
    for name, row in rows.items():
        Path(name).write_text(json.dumps(row) + "\n{}")
    assert runs.about(run).facts["teacher"] == "big-1"
    names = "mine.jsonl,two.jsonl,no.jsonl,gone.jsonl,bundled"
    (run / "config.yaml").write_text(f"data:\n  train: {names}\n")
    assert runs.about(run).facts["teacher"] == "big-1, big-2"
    assert runs.about(run).summary == "smollm2-135m-instruct from big-1, big-2"
    # the number of prompts is in a checkpoint's record
    record = json.dumps(digest.sealed({"format": 2, "step": 2, "meta": {"rows": 352}}))
    path = run / "checkpoints" / "2" / "meta" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(record)
    assert runs.about(run).facts["teacher's text"] == f"{names}, 352 prompts"
    path.write_text(record[:-9])
    assert runs.about(run).facts["teacher's text"] == names


def test_a_damaged_evaluation_is_named(run: Path) -> None:
    path = run / "evaluations" / "before.json"
    for text in (path.read_text()[:-9], "[]", "{}", '{"label": 1}', "{" * 9000):
        path.write_text(text)
        with pytest.raises(UserError, match=r"before\.json is no evaluation of a run \(.*move it"):
            runs.rows(run)

"""The report of a run, from the evaluations that it kept."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gad_jax.evaluate import __main__ as evaluate
from gad_jax.evaluate.human.ballots import Votes, ballots
from gad_jax.metrics import heldout
from gad_jax.training.report import answers

pytest_plugins = ["tests.run_fixtures"]


def test_a_run_is_reported_from_what_it_kept(
    tiny_run: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    (run / "evaluations").mkdir(parents=True)
    (run / "config.yaml").write_bytes((tiny_run / "config.yaml").read_bytes())
    assert "has neither steps nor evaluations" in refused(evaluate.main, run)
    (run / "metrics.jsonl").write_bytes((tiny_run / "metrics.jsonl").read_bytes())
    assert evaluate.main([str(run)]) == 0  # a run without held-out rows has curves
    page = (run / "report.html").read_text()
    assert "Learning curves" in page
    assert "held-out prompts" not in page
    assert "random-tiny from bundled, 352 prompts" in (tiny_run / "report.html").read_text()
    example = {"prompt": "p", "teacher": "a b", "student": "a", "length": 2, "finished": True}
    example |= {"teacher_length": 3, "rouge_l": 0.5}
    for label, step, text in (("before", 0, "a"), ("after gad", 2, "b")):
        result = heldout.HeldoutResult(label, step, {}, [example | {"student": text}])
        (run / "evaluations" / f"{step}.json").write_text(result.to_json())
    assert evaluate.main([str(run)]) == 0
    printed = capfd.readouterr().out
    assert printed.endswith(f"{run}/report.html\nnext: python -m gad_jax.serve --model {run}\n")
    page = (run / "report.html").read_text()
    assert "after gad" in page
    assert "People prefer" not in page

    (ballot,) = ballots(answers.from_run(run), ["after gad", "before"])
    Votes(run / "votes.jsonl").add(ballot, "ann", "tie", 0, 1.0)
    for flags, where in ([], run), ([f"--out={tmp_path}/elsewhere"], tmp_path / "elsewhere"):
        assert evaluate.main([str(run), *flags]) == 0
        page = (where / "report.html").read_text()
        assert "People prefer the answers of after gad to those of before" in page

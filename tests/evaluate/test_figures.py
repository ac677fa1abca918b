"""What the figures show, read back from their SVG."""

from typing import Any

from gad_jax.evaluate.answers import Answers
from gad_jax.evaluate.figures import curves, lengths, overlap_by_order
from gad_jax.metrics import overlap


def students(teacher: bool) -> list[Answers]:
    measures: dict[str, Any] = {f"ngram_{n}": 0.5 for n in overlap.ORDERS} if teacher else {}
    answer = {"text": "t", "tokens": 3, "finished": True, **measures}
    line = {"prompt": "p", "teacher_tokens": 4 if teacher else None, "answers": [answer]}
    return [Answers(label, "set", "", (line,)) for label in ("before", "gad")]


def test_overlap_needs_the_teachers_text() -> None:
    assert "n-gram F1" in overlap_by_order(students(teacher=True))
    assert overlap_by_order(students(teacher=False)) == ""


def test_lengths_have_the_teacher_where_it_is_known() -> None:
    drawn = lengths(students(teacher=True))
    assert "<svg" in drawn
    assert drawn.count("teacher") > lengths(students(teacher=False)).count("teacher")


def test_a_curve_for_each_metric_that_a_run_has() -> None:
    rows = [{"step": n, "stage": "gad", "reward/mean": n, "kl/reference": None} for n in (1, 2)]
    assert len(curves({"run": rows})) == 1
    assert len(curves({"run": rows, "other": [row | {"kl/reference": 1.0} for row in rows]})) == 2
    assert curves({"run": [{"step": 1, "stage": "gad"}]}) == []


def test_the_reward_over_the_teacher_is_drawn_of_old_runs_too() -> None:
    old = [
        {"step": n, "stage": "gad", "reward/mean": n, "discriminator/margin": 2.0} for n in (1, 2)
    ]
    new = [row | {"reward/minus_teacher": -2.0} for row in old]
    assert curves({"run": old}) == curves({"run": new})
    assert len(curves({"run": old})) == 3
    warmup = [{"step": 1, "stage": "warmup", "discriminator/margin": 2.0}]
    assert len(curves({"run": warmup})) == 1

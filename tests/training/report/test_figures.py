"""What the figures show, read back from their SVG."""

from typing import Any

from gad_jax.metrics import overlap
from gad_jax.settings.alarms import Alarm, Health
from gad_jax.training.report import figures
from gad_jax.training.report.alarms import Watched, replay
from gad_jax.training.report.answers import Answers
from gad_jax.training.report.figures import curves, lengths, overlap_by_order


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


def test_runs_with_equal_curves_are_told_apart() -> None:
    rows = [{"step": n, "stage": "gad", "response/length": n} for n in (1, 2)]
    (drawn,) = curves({"first": rows, "second": rows})
    assert ">second (same as first)</text>" in drawn
    assert drawn.count("stroke-dasharray") > curves({"first": rows})[0].count("stroke-dasharray")
    assert ">gad (same as before)</text>" in overlap_by_order(students(teacher=True))
    assert ">gad (same as before)</text>" in lengths(students(teacher=True))


def test_every_metric_of_an_evaluation_has_a_curve() -> None:
    row = {"step": 0, "stage": "gad", "evaluation/auc": 0.9, "evaluation/new": 1.0}
    auc, new = curves({"run": [row, row | {"step": 2, "evaluation/auc": 0.7}]})
    assert ">held-out AUC: 0.5 is told apart by chance</text>" in auc
    assert ">evaluation/new</text>" in new


def test_the_reward_over_the_teacher_is_drawn_of_old_runs_too() -> None:
    old = [
        {"step": n, "stage": "gad", "reward/mean": n, "discriminator/margin": 2.0} for n in (1, 2)
    ]
    new = [row | {"reward/minus_teacher": -2.0} for row in old]
    assert curves({"run": old}) == curves({"run": new})
    assert len(curves({"run": old})) == 3
    warmup = [{"step": 1, "stage": "warmup", "discriminator/margin": 2.0}]
    assert len(curves({"run": warmup})) == 1


def game(steps: int = 40, **more: float) -> list[dict[str, Any]]:
    return [
        {"step": n, "stage": "gad", "discriminator/accuracy": 0.97, "kl/reference": n / 10} | more
        for n in range(1, steps + 1)
    ]


def test_limits_alarms_and_pauses_are_drawn_in() -> None:
    rows = game()
    for row in rows[20:25]:
        row["health/discriminator_paused"] = 1.0
    settings = Health(saturated=Alarm("pause", 0.95, 10), kl=Alarm("stop", 2.5, 3))
    accuracy, kl = curves({"run": rows}, {"run": replay(settings, rows)})
    plain, plain_kl = curves({"run": rows})
    # named where they were raised, with limits in the same colour, and D's pause shaded
    assert ">saturated</text>" in accuracy
    assert ">kl</text>" in kl
    assert accuracy.count("#c0182b") > 2
    assert "#c0182b" not in plain + plain_kl
    assert accuracy.count("opacity: 0.25") > curves({"run": game()})[0].count("opacity: 0.25")
    # a limit far from all values is named: drawn, it would flatten the curve
    far = replay(Health(), game(**{"kl/reference": 0.01}))
    (_, flat) = curves({"run": game(**{"kl/reference": 0.01})}, {"run": far})
    assert ">kl at 1 ↑</text>" in flat


def test_other_metrics_are_drawn_only_where_they_raised_an_alarm() -> None:
    rows = game(**{"advantage/dead_groups": 0.9})
    assert len(curves({"run": rows})) == 2
    found = curves({"run": rows}, {"run": replay(Health(), rows)})
    assert len(found) == 3
    assert ">advantage/dead_groups</text>" in found[-1]
    assert ">dead_groups</text>" in found[-1]


def test_older_answers_are_next_to_fresh_ones_where_there_are_any() -> None:
    rows = game(3, **{"discriminator/accuracy_replayed": 0.8, "replay/share": 0.25})
    assert len(curves({"run": rows})) == 3
    assert ">on older answers</text>" in curves({"run": rows})[0]
    assert "older answers</text>" not in curves({"run": game(3)})[0]
    both = curves({"a": rows, "b": game(3)}, {"b": Watched({}, [], 10)})
    assert ">a, on older answers</text>" in both[0]


def test_a_long_line_is_averaged_as_the_alarms_do() -> None:
    points = [(1, "warmup", 1.0), (2, "gad", 3.0), (3, "gad", 5.0), (4, "gad", 10.0)]
    assert figures._smoothed(points, 2) == [1.0, 3.0, 4.0, 7.0]


def test_the_terms_of_a_mixed_reward_are_drawn_and_not_what_is_always_the_same() -> None:
    rows = [
        {"step": n, "stage": "gad", "reward/mean": 1e-8 * n, "reward/std": 1.0}
        | {"reward/brevity/mean": -float(n)}
        for n in (1, 2)
    ]
    (drawn,) = curves({"run": rows})
    assert ">reward: brevity</text>" in drawn
    other = [row | {"reward/std": float(row["step"])} for row in rows]
    assert ">reward/std, of the mix</text>" in curves({"run": other})[0]

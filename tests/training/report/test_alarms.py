"""A run's monitors, replayed: their limits in units of the metrics, and what they raised."""

from pathlib import Path
from typing import Any

import pytest

from gad_jax.settings.alarms import Alarm, Health
from gad_jax.training.report import alarms


def row(step: int, stage: str = "gad", **more: float | None) -> dict[str, Any]:
    metrics = {
        "discriminator/accuracy": 0.9,
        "response/length_ratio": 1.2,
        "response/cut_share": 0.3,
        "response/teacher_cut_share": 0.2,
        "response/repetition": 0.1,
        "response/teacher_repetition": 0.05,
        "response/script_drift": 0.02,
        "entropy": 2.0,
        "kl/reference": 0.1,
        "skips/consecutive": 0.0,
    }
    return {"step": step, "stage": stage} | metrics | more


def test_limits_are_in_units_of_the_metric() -> None:
    rows = [{"step": 0, "stage": "warmup", "evaluation/rouge_l": 0.1}]
    rows += [row(1, "warmup"), *(row(n) for n in range(2, 9))]
    found = alarms.replay(Health(), rows)
    assert found.raised == []
    assert found.smoothing_steps == 10
    assert found.limits["saturated"] == dict.fromkeys(range(1, 9), 0.98)
    assert found.limits["kl"] == dict.fromkeys(range(2, 9), 1.0)  # in GAD alone
    # Five steps of the stage are its start, which these compare with.
    by_hand = {
        "runaway": 3.0 * 1.2,
        "entropy_low": 0.2 * 2.0,
        "entropy_high": 3.0 * 2.0,
        "repetition": 0.05 + 0.3 + 0.05,  # the teacher's, the limit, what the start had above it
        "script": 0.3 + 0.02,
        # an eighth of what the teacher ends was cut at the start; half of the rest may be
        "cut": 0.2 + 0.8 * (1 / 8 + 0.5 * 7 / 8),
    }
    for name, limit in by_hand.items():
        assert found.limits[name] == pytest.approx({7: limit, 8: limit}), name
    assert not {"skips", "reward_spread", "generator_gradient"} & set(found.limits)


def test_alarms_are_those_that_the_run_raised() -> None:
    settings = Health(
        saturated=Alarm("pause", 0.95, 3), kl=Alarm("stop", 1.0, 2), length=Alarm("off", 1.0)
    )
    sick = {"discriminator/accuracy": 1.0, "kl/reference": 3.0}
    rows = [row(n) for n in range(1, 3)] + [row(n, **sick) for n in range(3, 30)]
    rows[10]["kl/reference"] = None  # was not finite
    found = alarms.replay(settings, rows)
    # values are averaged from the first step on: (2 · 0.9 + 3) / 5 is 0.96
    assert [(one.step, one.monitor, one.action, one.metric) for one in found.raised[:2]] == [
        (4, "kl", "stop", "kl/reference"),
        (7, "saturated", "pause", "discriminator/accuracy"),
    ]
    assert "D accuracy is 97" in found.raised[1].sentence
    assert "length" not in found.limits
    assert 11 not in found.limits["kl"]


def test_settings_are_the_runs_own(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("health:\n  kl:\n    limit: 0.05\n    steps: 4\n")
    found = alarms.of_run(tmp_path, [row(n) for n in range(1, 9)])
    assert found is not None
    assert [(one.step, one.monitor) for one in found.raised] == [(4, "kl")]
    (tmp_path / "config.yaml").write_text("nonsense: 1\n")
    assert alarms.of_run(tmp_path, []) is None

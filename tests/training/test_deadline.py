"""When a run has to end, from its settings and from the scheduler."""

import time

import pytest

from gad_jax.base.errors import UserError
from gad_jax.training.deadline import stop_time


def test_the_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert stop_time("", 5.0) == float("inf")
    assert stop_time("2100-01-01T00:10:00+00:00", 10.0) == 4102444800  # 2100-01-01 in UTC
    monkeypatch.setenv("SLURM_JOB_END_TIME", "4102444800")
    assert stop_time("", 5.0) == 4102444800 - 300
    assert stop_time("2100-01-02T00:00+00:00", 0.0) == 4102444800
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 240))
    with pytest.raises(UserError, match=r"has to end at .*margin_minutes=5 for s"):
        stop_time("", 5.0)

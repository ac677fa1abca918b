"""A run's health monitors, replayed from its metrics: the limits of each step, the alarms raised.

The monitors are a pure function of the metrics and the run's settings, so nothing else is stored.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.alarms import Alarm, Health
from gad_jax.settings.config import Config
from gad_jax.training import health

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Raised:
    """An alarm at the step that raised it."""

    step: int
    stage: str
    monitor: str
    action: Literal["warn", "pause", "stop"]
    sentence: str

    @property
    def metric(self) -> str:
        """The metric that the monitor reads."""
        return health.MONITORS[self.monitor].metric


@dataclasses.dataclass(frozen=True)
class Watched:
    """What the monitors of a run watched: of each, the value of its metric beyond which a step is
    bad, by step; the alarms in order; and over how many steps values are averaged."""

    limits: Mapping[str, Mapping[int, float]]
    raised: Sequence[Raised]
    smoothing_steps: int


def of_run(run: Path, rows: Sequence[Row]) -> Watched | None:
    """Returns what the monitors of a run directory watched, by the settings that it has now; None
    where this version cannot read them."""
    try:
        settings = options.load(Config, run / "config.yaml").health
    except UserError:
        return None
    return replay(settings, rows)


def replay(settings: Health, rows: Sequence[Row]) -> Watched:
    """Returns what monitors with these settings say of the rows of a metrics.jsonl."""
    state: health.State = {}
    limits: dict[str, dict[int, float]] = {}
    raised: list[Raised] = []
    for row in rows:
        if row["step"] < 1:  # the evaluation before training
            continue
        step, stage = row["step"], row["stage"]
        # A number that was not finite is null in the file, and is missing for a monitor.
        metrics = {n: float(value) for n, value in row.items() if isinstance(value, int | float)}
        state, events = health.observe(settings, state, stage, metrics)
        raised += [
            Raised(step, stage, event.monitor, event.action, event.sentence)
            for event in events
            if event.action
        ]
        for name, watch in state["watches"].items():
            limit = _limit(settings, name, watch, metrics)
            if limit is not None:
                limits.setdefault(name, {})[step] = limit
    return Watched(limits, raised, settings.smoothing_steps)


def _limit(
    settings: Health, name: str, watch: Mapping[str, Any], metrics: Mapping[str, float]
) -> float | None:
    """Returns the value of a monitor's metric at its limit in this step, or None where it has none:
    in the first steps of a stage, which are what it compares with."""
    alarm: Alarm = getattr(settings, name)
    monitor = health.MONITORS[name]
    if monitor.metric not in metrics or name == "skips":  # which reads a share, not its metric
        return None
    value = alarm.limit
    if monitor.relative is not None:
        if watch["seen"] <= settings.start_steps:
            return None
        # Every `relative` is affine in its first argument.
        nought, one = (monitor.relative(at, watch["start"]) for at in (0.0, 1.0))
        if nought == one:
            return None
        value = (value - nought) / (one - nought)
    if monitor.minus:
        other = metrics.get(monitor.minus, 0.0)
        value = other + value * (1 - other if monitor.of_rest else 1)
    return value

"""Health monitors: which metrics raise an alarm, and what each alarm does. Imports no jax.

`observe` is a pure function. Its state is JSON and part of every checkpoint, so a resumed run
raises the same alarms at the same steps. A monitor is a line in `settings.alarms.Health` and one in
`MONITORS`; docs/reliability.md says what to do about its alarm.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from gad_jax.settings.alarms import Alarm, Health

Side = Literal["generator", "discriminator"]
State = dict[str, Any]
"""What `observe` remembers: {"stage": …, "watches": {monitor: …}}; {} before the first step."""

EASE = 0.1
"""Hysteresis: an alarm clears when its value is this share inside the limit."""


class Monitor(NamedTuple):
    """Which quantity a monitor reads and what it says; its limit is in `Health`.

    `relative` computes what the limit is for from the smoothed value and that of the stage's start.
    `minus` is taken from the quantity; `of_rest` divides both by what could still be lost.
    `side` is the network that the action `pause` keeps from training.
    """

    metric: str
    side: Side | None
    says: str
    advice: str
    below: bool = False
    minus: str = ""
    of_rest: bool = False
    relative: Callable[[float, float], float] | None = None
    gad_only: bool = True


def _times(value: float, start: float) -> float:
    return value / start if start > 0 else 1.0


def _times_at_least_one(value: float, start: float) -> float:
    return value / max(start, 1.0)


def _more(value: float, start: float) -> float:
    return value - max(start, 0.0)


def _more_of_rest(value: float, start: float) -> float:
    """As `_more`, of what the start left: it reaches 1 wherever the start was."""
    start = max(start, 0.0)
    return (value - start) / (1 - start) if start < 1 else 0.0


_SLOWER = "lower gad.generator_learning_rate or raise grpo.kl_coefficient"
_GENTLER = "lower discriminator_learning_rate, or pause the discriminator (action pause)"

MONITORS: dict[str, Monitor] = {
    "length": Monitor(
        "response/length_ratio",
        "generator",
        "responses are {value:.2f} times as long as the teacher's",
        "look at samples/: a discriminator that likes length is being exploited; " + _SLOWER,
    ),
    "runaway": Monitor(
        "response/length_ratio",
        "generator",
        "responses have grown to {value:.2f} times the teacher's length",
        "go back to an earlier checkpoint; " + _SLOWER,
        relative=_times_at_least_one,
    ),
    "cut": Monitor(
        "response/cut_share",
        "generator",
        "{value:.0%} of the responses that used to end do not end before the limit",
        "responses run away, or rollout.max_new_tokens is too low for them; " + _SLOWER,
        minus="response/teacher_cut_share",
        of_rest=True,
        relative=_more_of_rest,
    ),
    "empty": Monitor(
        "response/empty_share",
        "generator",
        "{value:.0%} more responses than at the start are empty",
        _SLOWER,
        relative=_more,
    ),
    "repetition": Monitor(
        "response/repetition",
        "generator",
        "{value:.0%} more of the responses than of the teacher's is repetition",
        _SLOWER,
        minus="response/teacher_repetition",
        relative=_more,
    ),
    "script": Monitor(
        "response/script_drift",
        "generator",
        "{value:.0%} more of the text than at the start is of other scripts than the teacher's",
        _SLOWER,
        relative=_more,
    ),
    "saturated": Monitor(
        "discriminator/accuracy",
        "discriminator",
        "D accuracy is {value:.1%}, so the discriminator teaches little",
        _GENTLER,
        gad_only=False,
    ),
    "fooled": Monitor(
        "discriminator/accuracy",
        "generator",
        "D accuracy is {value:.1%}, worse than by chance",
        "raise discriminator_learning_rate, or let the generator wait for it (action pause)",
        below=True,
        gad_only=False,
    ),
    "reward_spread": Monitor(
        "reward/std",
        "generator",
        "the rewards of a prompt differ by {value:.2g} only, so nothing tells its samples apart",
        "raise rollout.temperature or gad.discriminator_learning_rate",
        below=True,
    ),
    "dead_groups": Monitor(
        "advantage/dead_groups",
        "generator",
        "{value:.0%} of the prompts pay all their samples the same",
        "the samples are too alike; raise rollout.temperature",
    ),
    "entropy_low": Monitor(
        "entropy",
        "generator",
        "the entropy is {value:.0%} of that at the start, so samples become alike",
        _SLOWER + ", or set grpo.entropy_coefficient",
        below=True,
        relative=_times,
    ),
    "entropy_high": Monitor(
        "entropy",
        "generator",
        "the entropy is {value:.1f} times that at the start, so responses become noise",
        _SLOWER,
        relative=_times,
    ),
    "kl": Monitor(
        "kl/reference",
        "generator",
        "the generator is {value:.2f} nats per token from where the stage began",
        _SLOWER,
    ),
    "generator_gradient": Monitor(
        "generator/gradient_norm",
        "generator",
        "the generator's gradient is {value:.0f} times as large as at the start",
        "lower generator_learning_rate",
        relative=_times,
        gad_only=False,
    ),
    "discriminator_gradient": Monitor(
        "discriminator/gradient_norm",
        "discriminator",
        "the discriminator's gradient is {value:.0f} times as large as at the start",
        "lower discriminator_learning_rate",
        relative=_times,
        gad_only=False,
    ),
    "skips": Monitor(
        "skips/consecutive",
        None,
        "{value:.0%} of the steps are skipped as not finite",
        "lower the learning rates",
        gad_only=False,
    ),
}


class Event(NamedTuple):
    """An alarm that was raised, or has cleared (`action` None), in a sentence."""

    monitor: str
    action: Literal["warn", "pause", "stop"] | None
    sentence: str


@dataclass(frozen=True)
class Watch:
    """What one monitor remembers: values seen, their smoothed value, the mean of the stage's start,
    consecutive bad values, whether its alarm is on, and for how many steps its side is paused."""

    seen: int = 0
    smoothed: float = 0.0
    start: float = 0.0
    bad: int = 0
    on: bool = False
    paused: int = 0


def observe(
    settings: Health, state: State, stage: str, metrics: Mapping[str, float]
) -> tuple[State, list[Event]]:
    """Returns the state after a step's metrics and the alarms that these raised or ended.

    A missing or non-finite metric does not change a monitor. Each stage starts with a new state.
    """
    known = state["watches"] if state.get("stage") == stage else {}
    watches, events = {}, []
    for name, monitor in MONITORS.items():
        alarm: Alarm = getattr(settings, name)
        if alarm.action == "off" or (monitor.gad_only and stage != "gad"):
            continue
        watch, event = _step(settings, name, Watch(**known.get(name, {})), metrics)
        watches[name] = dict(vars(watch))
        events += [event] if event else []
    return {"stage": stage, "watches": watches}, events


def paused_side(settings: Health, state: State, stage: str) -> Side | None:
    """Returns the network that an alarm of this stage pauses, or None. Where alarms ask for both,
    it is the generator, so that the discriminator can learn what is wrong with it."""
    if state.get("stage") != stage:  # the stage begins, and alarms do not outlive theirs
        return None
    pausing = [name for name in alarms(state) if getattr(settings, name).action == "pause"]
    sides = {MONITORS[name].side for name in pausing}
    if "generator" in sides:
        return "generator"
    return "discriminator" if sides else None


def alarms(state: State) -> list[str]:
    """Returns the names of the alarms that are on."""
    return [name for name, watch in state.get("watches", {}).items() if watch["on"]]


def is_well(state: State, monitor: str) -> bool:
    """Returns whether a monitor's alarm is off and its last value was within the limit."""
    watch = state.get("watches", {}).get(monitor, {"on": False, "bad": 0})
    return not (watch["on"] or watch["bad"])


def _step(
    settings: Health, name: str, watch: Watch, metrics: Mapping[str, float]
) -> tuple[Watch, Event | None]:
    """Returns what a monitor remembers after a step, and what it has to say."""
    alarm: Alarm = getattr(settings, name)
    monitor = MONITORS[name]
    watch = replace(watch, paused=watch.paused + 1 if watch.on else 0)
    if alarm.action == "pause" and watch.paused >= settings.longest_pause:
        sentence = f"alarm {name}: the {monitor.side} resumes after {watch.paused} steps"
        return replace(watch, on=False, bad=0, paused=0), Event(name, None, sentence)
    raw = _read(monitor, metrics)
    if raw is None:
        return watch, None
    seen = watch.seen + 1
    smoothed = watch.smoothed + (raw - watch.smoothed) / min(seen, settings.smoothing_steps)
    start = watch.start
    if seen <= settings.start_steps:
        start += (raw - start) / seen
    watch = replace(watch, seen=seen, smoothed=smoothed, start=start)
    value = smoothed
    if monitor.relative is not None:
        if seen <= settings.start_steps:
            return watch, None
        value = monitor.relative(smoothed, start)
    return _judge(name, monitor, alarm, watch, value)


def _judge(
    name: str, monitor: Monitor, alarm: Alarm, watch: Watch, value: float
) -> tuple[Watch, Event | None]:
    """Raises an alarm after enough bad values, ends it at the first one well inside the limit."""
    sign = -1 if monitor.below else 1
    watch = replace(watch, bad=watch.bad + 1 if sign * value > sign * alarm.limit else 0)
    said = monitor.says.format(value=value)
    if not watch.on and watch.bad >= alarm.steps:
        assert alarm.action != "off"
        sentence = f"alarm {name}: {said} (limit {alarm.limit:g}); {monitor.advice}"
        return replace(watch, on=True), Event(name, alarm.action, sentence)
    if watch.on and sign * value < sign * alarm.limit * (1 - sign * EASE):
        return replace(watch, on=False, paused=0), Event(
            name, None, f"alarm {name} has cleared: {said}"
        )
    return watch, None


def _read(monitor: Monitor, metrics: Mapping[str, float]) -> float | None:
    """Returns a monitor's quantity, or None where there is none."""
    value = metrics.get(monitor.metric, math.nan)
    skipped = metrics.get("skips/consecutive", 0.0) > 0
    if monitor.metric == "skips/consecutive":
        value = float(skipped)
    elif skipped:  # the numbers of a skipped step are not reliable
        return None
    if monitor.minus:
        other = metrics.get(monitor.minus, 0.0)
        rest = 1 - other if monitor.of_rest else 1.0
        value = (value - other) / rest if rest > 0 else math.nan
    return value if math.isfinite(value) else None

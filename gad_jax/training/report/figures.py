"""The report's figures, as SVG: overlap by n, lengths, learning curves with their alarms."""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from gad_jax.base.step_line import reward_terms
from gad_jax.metrics import overlap
from gad_jax.metrics.intervals import Interval
from gad_jax.metrics.plots import COLOURS, make_axes, named, styles, to_svg
from gad_jax.training import health
from gad_jax.training.report.alarms import Row, Watched
from gad_jax.training.report.answers import Answers, mean

TEACHER = "#222222"

ALARM = "#c0182b"
PAUSED = {"discriminator": "#8d99a6", "generator": "#b8860b"}
SMOOTHED_FROM = 30
"""Points of a line from which its running mean is drawn too, which is what alarms read."""


class Curve(NamedTuple):
    """A figure over the steps: its title, and metrics drawn next to its own, with their labels."""

    title: str
    more: Mapping[str, str] = MappingProxyType({})
    ends: tuple[float, float] | None = None


HELD_OUT = "evaluation/"
CURVES = {
    "evaluation/rouge_l": Curve("held-out ROUGE-L"),
    "evaluation/auc": Curve("held-out AUC: 0.5 is told apart by chance", ends=(0.0, 1.05)),
    "evaluation/length_ratio": Curve("held-out length, × teacher"),
    "evaluation/length": Curve("held-out length, tokens"),
    "evaluation/cut_share": Curve("held-out answers that are cut", ends=(-0.05, 1.05)),
    "discriminator/accuracy": Curve(
        "D accuracy",
        {"discriminator/accuracy_replayed": "on older answers"},
        (0.0, 1.05),
    ),
    "discriminator/margin": Curve("score margin, teacher − student"),
    "dpo/accuracy": Curve("DPO accuracy"),
    "dpo/margin": Curve("DPO margin, teacher − rejected"),
    "reward/minus_teacher": Curve("D's score − the teacher's"),
    "reward/mean": Curve("reward (D's loss leaves its level free)"),
    "reward/std": Curve("spread of the rewards of a prompt"),
    "replay/share": Curve("share of older answers in D's batch"),
    "response/length_ratio": Curve("response length, × teacher"),
    "response/length": Curve("response length, tokens"),
    "kl/reference": Curve("KL to the stage's start, nats per token"),
    "entropy": Curve("entropy, nats per token"),
    "response/repetition": Curve(
        "repeated 4-grams", {"response/teacher_repetition": "of the teacher"}
    ),
    "response/script_drift": Curve("distance of scripts from the teacher's"),
}


def overlap_by_order(answers: Sequence[Answers]) -> str:
    """Returns a figure of n-gram F1 against the teacher for n = 1..6, one line per student: the
    paper's Figure 4. Empty without teacher text."""
    lines = {a.label: [mean(a, f"ngram_{n}") for n in overlap.ORDERS] for a in answers}
    if any(None in line for line in lines.values()):
        return ""
    figure, axes = make_axes()
    names = named({label: [x for x in line if x is not None] for label, line in lines.items()})
    for (label, line), look in zip(lines.items(), styles(len(lines)), strict=True):
        axes.plot(list(overlap.ORDERS), line, label=names[label], **look)
    axes.set(xlabel="n", ylabel="n-gram F1", title="overlap with the teacher's text")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return to_svg(figure)


def lengths(answers: Sequence[Answers]) -> str:
    """Returns a figure of the share of answers longer than n tokens, with the teacher's."""
    found = {
        a.label: [answer["tokens"] for line in a.lines for answer in line["answers"]]
        for a in answers
    }
    names = named({label: sorted(tokens) for label, tokens in found.items()})
    looks = styles(len(found), markers=False)
    teacher = [line["teacher_tokens"] for line in answers[0].lines if line["teacher_tokens"]]
    if teacher:
        found["teacher"], names["teacher"] = teacher, "teacher"
        looks.append({"color": TEACHER, "linestyle": ":"})
    figure, axes = make_axes()
    for (label, tokens), look in zip(found.items(), looks, strict=True):
        ordered = np.sort([0, *tokens])
        longer = 1 - np.arange(len(ordered)) / len(tokens)
        axes.step(ordered, longer, where="post", label=names[label], **look)
    axes.set(xlabel="tokens", ylabel="share that is longer", title="length of the answers")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return to_svg(figure)


def curves(
    runs: Mapping[str, Sequence[Row]],
    watched: Mapping[str, Watched] | None = None,
    bars: Mapping[str, Mapping[int, Interval]] | None = None,
) -> list[str]:
    """Returns a figure for each metric of `CURVES` that some run has, for each term of a reward,
    for each other one of the held-out evaluations, and for each other that raised an alarm. `runs`
    holds the rows of each metrics.jsonl by name, `watched` their monitors, `bars` intervals of
    metrics at some steps.

    Limits and alarms are red. With one run, dashed lines mark where stages begin, and the steps in
    which an alarm paused a network are shaded.
    """
    watched = watched or {}
    alarmed = sorted({alarm.metric for one in watched.values() for alarm in one.raised})
    every = {name for rows in runs.values() for row in rows for name in row}
    evaluated = sorted(name for name in every if name.startswith(HELD_OUT))
    terms = reward_terms(sorted(every))
    paid = {f"reward/{name}/mean": Curve(f"reward: {name}") for name in terms}
    others = [name for name in (*evaluated, *alarmed) if name not in CURVES | paid]
    chosen = CURVES | paid | {name: Curve(name) for name in others}
    if terms:  # a mix of normalised terms has the mean 0
        for name in ("reward/mean", "reward/std"):
            values = [x for rows in runs.values() for *_, x in _points(rows, name)]
            if max(values, default=0.0) - min(values, default=0.0) < 1e-4:
                del chosen[name]
            else:
                chosen[name] = Curve(f"{name}, of the mix")
    found = bars or {}
    drawn = (
        _curve(name, curve, runs, watched, found.get(name, {})) for name, curve in chosen.items()
    )
    return [figure for figure in drawn if figure]


def _curve(
    name: str,
    curve: Curve,
    runs: Mapping[str, Sequence[Row]],
    watched: Mapping[str, Watched],
    bars: Mapping[int, Interval],
) -> str:
    """Returns the figure of one metric, empty if no run has it."""
    if not any(_points(rows, name) for rows in runs.values()):
        return ""
    figure, axes = make_axes()
    alone = len(runs) == 1
    heights = {}
    names = named({label: _points(rows, name) for label, rows in runs.items()})
    looks = styles(len(runs), markers=False)
    if alone:
        names, looks = dict.fromkeys(runs, "this run"), [{"color": COLOURS[3]}]
    for (label, rows), look in zip(runs.items(), looks, strict=True):
        steps = watched[label].smoothing_steps if label in watched else 10
        heights[label] = _line(axes, _points(rows, name), steps, look | {"label": names[label]})
        for other, said in curve.more.items():
            if points := _points(rows, other):
                said = said if alone else f"{label}, {said}"
                colour = TEACHER if alone else look["color"]
                _line(axes, points, steps, {"color": colour, "linestyle": ":", "label": said})
    for step, bar in bars.items():
        axes.vlines(step, bar.low, bar.high, color=COLOURS[3], alpha=0.45, linewidth=1.5)
    if alone:
        _mark_stages(axes, next(iter(runs.values())))
    _draw_limits(axes, name, curve.ends, watched)
    for label, one in watched.items():
        _mark_alarms(axes, one, name, heights.get(label, {}))
    if not alone or len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="step", title=curve.title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return to_svg(figure)


def _points(rows: Sequence[Row], name: str) -> list[tuple[int, str, float]]:
    """Returns step, stage and value of the steps that have a metric."""
    found = ((row["step"], row["stage"], _value(row, name)) for row in rows)
    return [(step, stage, float(value)) for step, stage, value in found if value is not None]


def _line(
    axes: Any, points: Sequence[tuple[int, str, float]], window: int, look: Mapping[str, Any]
) -> dict[int, float]:
    """Draws a metric, a long one as its running mean over a pale line of its values. Returns the
    height of the line at each step."""
    steps, values = [step for step, _, _ in points], [value for _, _, value in points]
    if len(points) >= SMOOTHED_FROM:
        axes.plot(steps, values, linewidth=0.8, alpha=0.3, color=look["color"])
        values = _smoothed(points, window)
    marker = "o" if len(points) < 12 else ""
    axes.plot(steps, values, marker=marker, **look)
    return dict(zip(steps, values, strict=True))


def _smoothed(points: Sequence[tuple[int, str, float]], window: int) -> list[float]:
    """Returns the running mean as the alarms have it: every stage starts a new one."""
    means, stage, seen, mean = [], "", 0, 0.0
    for _, of_stage, value in points:
        stage, seen, mean = (stage, seen, mean) if of_stage == stage else (of_stage, 0, 0.0)
        seen += 1
        mean += (value - mean) / min(seen, window)
        means.append(mean)
    return means


def _mark_alarms(axes: Any, watched: Watched, name: str, heights: Mapping[int, float]) -> None:
    """Marks the steps at which this metric raised an alarm, and names each monitor once."""
    named = set()
    middle = sum(axes.get_ylim()) / 2
    for alarm in watched.raised:
        if alarm.metric != name or alarm.step not in heights:
            continue
        place = alarm.step, heights[alarm.step]
        axes.plot(*place, "X" if alarm.action == "stop" else "v", color=ALARM, zorder=5)
        if alarm.monitor not in named:
            named.add(alarm.monitor)
            offset = (0, -14 if place[1] > middle else 7)
            axes.annotate(
                alarm.monitor, place, offset, textcoords="offset points",
                color=ALARM, fontsize=8, ha="center",
            )  # fmt: skip


def _draw_limits(
    axes: Any, name: str, ends: tuple[float, float] | None, watched: Mapping[str, Watched]
) -> None:
    """Draws the limits of the alarms on this metric. One that is far from all values is named at
    the edge: drawn, it would flatten the curve."""
    low, high = ends or axes.get_ylim()
    above: dict[str, None] = {}
    below: dict[str, None] = {}
    for one in watched.values():
        for monitor, limits in one.limits.items():
            if health.MONITORS[monitor].metric != name:
                continue
            last = list(limits.values())[-1]
            if ends or 2 * low - high <= last <= 2 * high - low:
                # A limit that follows the teacher's value is averaged like what it is for.
                line = _smoothed([(n, "", v) for n, v in limits.items()], one.smoothing_steps)
                axes.plot(list(limits), line, "--", color=ALARM, linewidth=1, alpha=0.8)
            else:
                edge, arrow = (above, "↑") if last > high else (below, "↓")
                edge[f"{monitor} at {last:.3g} {arrow}"] = None
    if ends:
        axes.set_ylim(*ends)
    for height, align, far in ((0.98, "top", above), (0.02, "bottom", below)):
        if far:
            axes.text(
                0.99, height, "\n".join(far), transform=axes.transAxes, color=ALARM, fontsize=8,
                ha="right", va=align,
            )  # fmt: skip


def _value(row: Row, name: str) -> Any:
    """Returns a metric of a step. Runs of earlier versions lack one, which follows from others."""
    value = row.get(name)
    if value is None and name == "reward/minus_teacher" and row.get("reward/mean") is not None:
        margin = row.get("discriminator/margin")
        return None if margin is None else -margin
    return value


def _mark_stages(axes: Any, rows: Sequence[Row]) -> None:
    """Marks where stages begin and which steps an alarm paused; the axis covers all steps, also
    those without the metric."""
    first, last = rows[0]["step"], max(rows[-1]["step"], rows[0]["step"] + 1)
    axes.set_xlim(first - 0.015 * (last - first), last + 0.015 * (last - first))
    for before, after in itertools.pairwise(rows):
        if before["stage"] != after["stage"]:
            start = before["step"] + 0.5
            axes.axvline(start, color="#bbb", linestyle="--", linewidth=1)
            place = axes.get_xaxis_transform()
            axes.text(start, 0.98, f" {after['stage']}", transform=place, color="#777", va="top")
    for side, colour in PAUSED.items():
        paused = [row["step"] for row in rows if row.get(f"health/{side}_paused")]
        spans = np.split(paused, np.flatnonzero(np.diff(paused) > 1) + 1) if paused else []
        for span in spans:
            axes.axvspan(span[0] - 0.5, span[-1] + 0.5, color=colour, alpha=0.25, linewidth=0)

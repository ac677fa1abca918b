"""The report's figures, as SVG: overlap by n, lengths, learning curves."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gad_jax.evaluate.answers import Answers, mean
from gad_jax.metrics import overlap
from gad_jax.metrics.plots import COLOURS, colours, make_axes, to_svg

TEACHER = "#222222"

CURVES = {
    "reward/minus_teacher": "reward − the teacher's score",
    "reward/mean": "reward (D's loss leaves its level free)",
    "discriminator/accuracy": "discriminator accuracy",
    "discriminator/margin": "score margin, teacher − student",
    "dpo/accuracy": "DPO accuracy",
    "dpo/margin": "DPO margin, teacher − rejected",
    "response/length": "response length, tokens",
    "kl/reference": "KL to the stage's start, nats per token",
    "evaluation/rouge_l": "held-out ROUGE-L",
}


def overlap_by_order(answers: Sequence[Answers]) -> str:
    """Returns a figure of n-gram F1 against the teacher for n = 1..6, one line per student: the
    paper's Figure 4. Empty without teacher text."""
    lines = {a.label: [mean(a, f"ngram_{n}") for n in overlap.ORDERS] for a in answers}
    if any(None in line for line in lines.values()):
        return ""
    figure, axes = make_axes()
    for (label, line), colour in zip(lines.items(), colours(len(lines)), strict=True):
        axes.plot(list(overlap.ORDERS), line, "o-", color=colour, label=label)
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
    shades = colours(len(found))
    teacher = [line["teacher_tokens"] for line in answers[0].lines if line["teacher_tokens"]]
    if teacher:
        found["teacher"] = teacher
        shades.append(TEACHER)
    figure, axes = make_axes()
    for (label, tokens), colour in zip(found.items(), shades, strict=True):
        ordered = np.sort([0, *tokens])
        longer = 1 - np.arange(len(ordered)) / len(tokens)
        style = "--" if label == "teacher" else "-"
        axes.step(ordered, longer, style, where="post", color=colour, label=label)
    axes.set(xlabel="tokens", ylabel="share that is longer", title="length of the answers")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return to_svg(figure)


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Returns a figure for each metric of `CURVES` that some run has. `runs` holds the rows of each
    metrics.jsonl by name. With one run, dashed lines mark where stages begin."""
    figures = []
    for name, title in CURVES.items():
        points = {
            label: [
                (row["step"], value) for row in rows if (value := _value(row, name)) is not None
            ]
            for label, rows in runs.items()
        }
        if not any(points.values()):
            continue
        figure, axes = make_axes()
        for (label, line), colour in zip(points.items(), colours(len(points)), strict=True):
            colour = COLOURS[3] if len(points) == 1 else colour
            mark = "o-" if len(line) < 12 else "-"
            axes.plot(
                *(zip(*line, strict=True) if line else ([], [])), mark, color=colour, label=label
            )
        if len(runs) == 1:
            _mark_stages(axes, next(iter(runs.values())))
        else:
            axes.legend(frameon=False)
        axes.set(xlabel="step", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figures.append(to_svg(figure))
    return figures


def _value(row: Mapping[str, Any], name: str) -> Any:
    """Returns a metric of a step. Runs of earlier versions lack one, which follows from others."""
    value = row.get(name)
    if value is None and name == "reward/minus_teacher" and row.get("reward/mean") is not None:
        margin = row.get("discriminator/margin")
        return None if margin is None else -margin
    return value


def _mark_stages(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Marks where stages begin; the axis covers all steps, also those without the metric."""
    axes.set_xlim(rows[0]["step"], max(rows[-1]["step"], rows[0]["step"] + 1))
    for before, after in itertools.pairwise(rows):
        if before["stage"] != after["stage"]:
            start = before["step"] + 0.5
            axes.axvline(start, color="#bbb", linestyle="--", linewidth=1)
            place = axes.get_xaxis_transform()
            axes.text(start, 0.98, f" {after['stage']}", transform=place, color="#777", va="top")

"""The results of the small world: a table with intervals over seeds, and a figure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gad_jax.base import console, files
from gad_jax.metrics.plots import COLOURS, colours
from gad_jax.metrics.statistics import Interval, t_interval
from gad_jax.world import language

MEASURES = {
    "right, greedy %": lambda r: 100 * r["greedy"]["valid"],
    "right, sampled %": lambda r: 100 * r["sampled"]["valid"],
    "headlines, sampled %": lambda r: 100 * r["sampled"]["styles"]["headline"][0],
    "styles covered": lambda r: r["sampled"]["coverage"],
    "effective styles": lambda r: r["sampled"]["diversity"],
    "distinct of 4 %": lambda r: 100 * r["sampled"]["distinct"],
    "1-gram F1 %": lambda r: 100 * r["greedy"]["ngram_1"],
    "4-gram F1 %": lambda r: 100 * r["greedy"]["ngram_4"],
    "ROUGE-L %": lambda r: 100 * r["greedy"]["rouge_l"],
    "tokens, greedy": lambda r: r["greedy"]["tokens"],
    "fall from the peak, greedy %": lambda r: 100 * _fall(r["curve"]),
}
KNOWLEDGE = {
    "last result right, greedy %": lambda r: 100 * r["last_result"],
    "right, given a headline %": lambda r: 100 * r["given"]["headline"],
    "right, given steps %": lambda r: 100 * r["given"]["steps"],
    "right, given a story %": lambda r: 100 * r["given"]["story"],
    "best of 8 by majority %": lambda r: 100 * r["chosen"]["majority"],
    "first of 8 without contradiction %": lambda r: 100 * r["chosen"]["agrees"],
    "best of 8 by GAD's D %": lambda r: 100 * r["chosen"].get("discriminator", np.nan),
    "right before wrong of one style, by GAD's D %": lambda r: 100 * r.get("ordered", np.nan),
}
"""What a student can do when another one chooses the style or the sample (`knowledge.py`)."""

STABLE = "seeds at 98 % or more, greedy, that fell by 2 % at most"
"""How often a method ends where the discriminator's claim says that it should."""

PRINTED = (
    "right, greedy %",
    "right, sampled %",
    "fall from the peak, greedy %",
    "last result right, greedy %",
    "right, given steps %",
    "best of 8 by GAD's D %",
    "4-gram F1 %",
)
WARM = "warm start"


def report(seeds: Sequence[int], methods: Mapping[str, str], out: Path) -> None:
    """Prints the table of the methods, given as {name: what the report calls it}.

    Writes results.md, results.json and results.png into the directory.
    """
    found = {
        called: [_read(out / f"seed-{seed}", name) for seed in seeds]
        for name, called in {"warm": WARM, **methods}.items()
    }
    table = {
        called: {
            name: t_interval([float(value(r)) for r in repeated])
            for name, value in MEASURES.items()
        }
        | {
            name: t_interval([float(value(r["knowledge"])) for r in repeated])
            for name, value in KNOWLEDGE.items()
        }
        for called, repeated in found.items()
    }
    shown = {
        called: {name: _shown(cell) for name, cell in row.items()} for called, row in table.items()
    }
    for called, repeated in found.items():
        shown[called][STABLE] = f"{sum(map(_stable, repeated))} of {len(repeated)}"
    printed = {called: {name: row[name] for name in PRINTED} for called, row in shown.items()}
    console.Display().table(f"mean over {len(seeds)} seeds [95 % interval]", printed)
    lines = [
        ["", *shown],
        ["---"] * (1 + len(shown)),
        *(
            [name, *(row[name] for row in shown.values())]
            for name in (*MEASURES, STABLE, *KNOWLEDGE)
        ),
    ]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    files.write_atomic(out / "results.md", text + "\n")
    files.write_atomic(
        out / "results.json", json.dumps({"seeds": [*seeds], **found}, indent=1) + "\n"
    )
    _draw(found, table, out / "results.png")
    print(out / "results.png")


def _fall(curve: Sequence[Mapping[str, Any]]) -> float:
    """Returns by how much the last evaluation is below the best one, as a share of its answers."""
    valid = [point["valid"] for point in curve]
    return max(valid) - valid[-1] if valid else np.nan


def _stable(found: Mapping[str, Any]) -> bool:
    return found["greedy"]["valid"] >= 0.98 and round(_fall(found["curve"]), 6) <= 0.02


def _shown(cell: Interval) -> str:
    if np.isnan(cell.value):
        return ""
    return f"{cell.value:.1f}" if np.isnan(cell.low) else str(cell)


def _read(place: Path, name: str) -> dict[str, Any]:
    """Returns the measures of a method's student, with those of what it knows."""
    found, knowledge = (
        json.loads((place / f"{file}.json").read_text("utf-8"))
        for file in (name, f"{name}-knowledge")
    )
    return found | {"knowledge": knowledge}


def _draw(
    found: Mapping[str, list[dict[str, Any]]],
    table: Mapping[str, Mapping[str, Interval]],
    path: Path,
) -> None:
    """Writes the figure: how many answers are right, in which style, and during training."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    (right, styles), (curves, leads) = figure.subplots(2, 2)
    _draw_right(right, table)
    _draw_styles(styles, found)
    for axes in (right, styles):
        axes.set_xticks(np.arange(len(found)), [*found], rotation=25, ha="right")
    for (called, repeated), colour in zip(found.items(), colours(len(found)), strict=True):
        if called == WARM:
            continue
        steps, valid = _mean_curve(repeated, "valid")
        curves.plot(steps, 100 * valid, "o-", ms=3, color=colour, label=called)
        steps, lead = _mean_curve(repeated, "lead")
        if steps.size:
            leads.plot(steps, lead, "o-", ms=3, color=colour, label=called)
    title = "during training (mean over seeds)"
    curves.set(xlabel="step", ylabel="right, greedy, %", title=title)
    leads.set(xlabel="step", ylabel="score, student − teacher", title="scores of D")
    curves.legend(frameon=False)
    figure.savefig(path, dpi=110)


def _draw_right(axes: Axes, table: Mapping[str, Mapping[str, Interval]]) -> None:
    """Draws right answers as bars, with the intervals over seeds."""
    places = np.arange(len(table))
    bars = (("right, greedy %", COLOURS[3]), ("right, sampled %", COLOURS[2]))
    for offset, (name, colour) in enumerate(bars):
        cells = [row[name] for row in table.values()]
        at, values = places + 0.36 * offset - 0.18, [c.value for c in cells]
        axes.bar(at, values, 0.34, color=colour, label=name.rstrip(" %"))
        spread = [c.high - c.value for c in cells]
        axes.errorbar(at, values, spread, fmt="none", color="black", capsize=3)
    axes.set(ylabel="right answers, %", ylim=(0, 120), title="by the oracle")
    axes.legend(frameon=False, loc="upper left", ncols=2)


def _draw_styles(axes: Axes, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Draws the shares of the styles as stacked bars; the pale part of each is wrong."""
    places, floor = np.arange(len(found)), np.zeros(len(found))
    for style, number in zip((*language.STYLES, "none"), (1, 3, 2, 0), strict=True):
        share, valid = (
            np.asarray(
                [
                    100 * np.mean([r["sampled"]["styles"][style][n] for r in repeated])
                    for repeated in found.values()
                ]
            )
            for n in (0, 1)
        )
        colour = COLOURS[number]
        axes.bar(places, valid, 0.7, floor, color=colour, label=style)
        axes.bar(places, share - valid, 0.7, floor + valid, color=colour, alpha=0.3, hatch="//")
        floor += share
    axes.set(ylabel="answers at temperature 1, %", title="styles; pale: wrong answers")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _mean_curve(repeated: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps at which all seeds have a value, and its mean."""
    curves = [{p["step"]: p[name] for p in r["curve"] if name in p} for r in repeated]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return np.asarray(steps), np.asarray([np.mean([c[step] for c in curves]) for step in steps])

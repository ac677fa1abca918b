"""The results on the personas: a table with intervals over prompts and seeds, and a figure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gad_jax.base import console, files
from gad_jax.metrics.plots import COLOURS, colours
from gad_jax.metrics.statistics import (
    SHARES,
    UNBOUNDED,
    Bounds,
    Interval,
    seeds_interval,
    t_interval,
)
from gad_jax.world.personas import compute, mixture
from gad_jax.world.personas.methods import TEACHER, Entry
from gad_jax.world.personas.mixture import Persona

PER_PROMPT: dict[str, tuple[str, Bounds, float]] = {
    "KL(student ‖ teacher), nats": ("reverse_kl", UNBOUNDED, 1.0),
    "KL(teacher ‖ student), nats": ("forward_kl", UNBOUNDED, 1.0),
    "loss on held-out teacher answers, nats per token": ("heldout_loss", UNBOUNDED, 1.0),
    "teacher's loss on these answers, nats per token": ("teacher_loss", UNBOUNDED, 1.0),
    "AUC of a fresh classifier, %": ("auc", SHARES, 100.0),
    "most probable persona of an answer, %": ("decided", SHARES, 100.0),
    "tokens": ("length", UNBOUNDED, 1.0),
    "cut, %": ("cut", SHARES, 100.0),
}
"""Rows of the table with a number per prompt: its name, bounds, and the factor it is shown with."""

KLS = [*PER_PROMPT][:2]
EFFECTIVE = "effective personas"
COSTS = {
    "minutes of training": ("minutes", 1.0),
    "tokens sampled in training, thousands": ("sampled", 1e-3),
    "positions through G's update, thousands": ("generator", 1e-3),
    "positions through D's update, thousands": ("discriminator", 1e-3),
}
PRINTED = {
    "KL(q‖p)": KLS[0],
    "KL(p‖q)": KLS[1],
    "AUC %": [*PER_PROMPT][4],
    "personas": EFFECTIVE,
}
"""The columns of the console's table: q is the student, p the teacher."""

NONE = Interval(np.nan, np.nan, np.nan)
Table = dict[str, dict[str, Interval]]


def report(
    seeds: Sequence[int], entries: Iterable[Entry], personas: Sequence[Persona], out: Path
) -> None:
    """Prints the table of the methods, and writes results.md, results.json and results.png."""
    found = _read(seeds, entries, out)
    table = {called: _row(repeated, personas) for called, repeated in found.items()}
    printed = {
        called: {short: _plus_minus(row[name]) for short, name in PRINTED.items()}
        for called, row in table.items()
    }
    count = len(next(iter(found.values()))[0]["prompts"]["length"])
    over = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    console.Display().table(f"{count} prompts, {over}; ± half of the 95 % interval", printed)
    lines = [["", *table], ["---"] * (1 + len(table))]
    for name in next(iter(table.values())):
        digits = 2 if "nats" in name or name == EFFECTIVE else 1
        lines.append([name, *(_shown(row[name], digits) for row in table.values())])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    files.write_atomic(out / "results.md", text + "\n")
    kept = {"seeds": [*seeds], "personas": [persona._asdict() for persona in personas]}
    files.write_atomic(out / "results.json", json.dumps(kept | found, indent=1) + "\n")
    _draw(table, personas, out / "results.png")
    print(out / "results.png")


def _read(
    seeds: Sequence[int], entries: Iterable[Entry], out: Path
) -> dict[str, list[dict[str, Any]]]:
    """Returns the results of each method, by what the report calls it, with all that it cost."""
    entries = [*entries]
    parts = {name: entry for entry in entries for name in (entry.name,)}
    found: dict[str, list[dict[str, Any]]] = {TEACHER: [], **{e.says: [] for e in entries}}
    for seed in seeds:

        def load(name: str, seed: int = seed) -> dict[str, Any]:
            return json.loads((out / f"seed-{seed}" / f"{name}.json").read_text("utf-8"))

        found[TEACHER].append(load(TEACHER))
        for entry in entries:
            # What a method builds on is part of its cost.
            needed = _needed(entry, parts)
            one = load(entry.directory)
            one["cost"] = compute.together(load(parts[n].directory)["cost"] for n in needed)
            found[entry.says].append(one)
    return found


def _needed(entry: Entry, parts: Mapping[str, Entry]) -> set[str]:
    """Returns the names of an entry and of all that it builds on."""
    found = {entry.name}
    for name in (entry.start, entry.judge):
        if name in parts and name != entry.name:
            found |= _needed(parts[name], parts)
    return found


def _row(repeated: Sequence[dict[str, Any]], personas: Sequence[Persona]) -> dict[str, Interval]:
    """Returns the cells of one method."""
    row: dict[str, Interval] = {}
    for name, (key, bounds, factor) in PER_PROMPT.items():
        values = [one["prompts"].get(key) for one in repeated]
        row[name] = NONE if None in values else _times(_interval(values, bounds), factor)
    shares = np.asarray([one["prompts"]["share"] for one in repeated])  # [seeds prompts personas]
    for place, persona in enumerate(personas):
        cell = _times(_interval(shares[..., place], SHARES), 100.0)
        row[f"{persona.name} ({100 * persona.share:g}), %"] = cell
    row[EFFECTIVE] = t_interval([mixture.effective(each.mean(axis=0)) for each in shares])
    for name, (key, factor) in COSTS.items():
        row[name] = _times(t_interval([one["cost"][key] for one in repeated]), factor)
    return row


def _interval(values: Any, bounds: Bounds) -> Interval:
    return seeds_interval(np.asarray(values, np.float64), bounds=bounds)


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(*(factor * number for number in interval))


def _shown(cell: Interval, digits: int) -> str:
    return "" if np.isnan(cell.value) else cell.shown(digits)


def _plus_minus(cell: Interval) -> str:
    if np.isnan(cell.value):
        return "–"
    half = (cell.high - cell.low) / 2
    digits = 1 if abs(cell.value) >= 10 else 2
    return f"{cell.value:.{digits}f}" + ("" if np.isnan(half) else f" ±{half:.{digits}f}")


def _draw(table: Table, personas: Sequence[Persona], path: Path) -> None:
    """Writes the figure: both divergences of each method, and the personas of its answers."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    divergences, shares = figure.subplots(1, 2)
    _draw_divergences(divergences, table)
    _draw_shares(shares, table, personas)
    figure.savefig(path, dpi=110)


def _draw_divergences(axes: Axes, table: Table) -> None:
    known = {called: row for called, row in table.items() if not np.isnan(row[KLS[0]].value)}
    for (called, row), colour in zip(known.items(), colours(len(known)), strict=True):
        x, y = (row[name] for name in KLS)
        bars = [[[max(c.value - c.low, 0)], [max(c.high - c.value, 0)]] for c in (x, y)]
        axes.errorbar(
            x.value, y.value, xerr=bars[0], yerr=bars[1], fmt="o", color=colour, label=called
        )
    axes.set(xlabel=f"{KLS[0]} (invents)", ylabel=f"{KLS[1]} (leaves out)", title="exact, held out")
    if known:
        axes.legend(frameon=False)
    axes.grid(alpha=0.25)


def _draw_shares(axes: Axes, table: Table, personas: Sequence[Persona]) -> None:
    floor = np.zeros(len(table))
    for place, persona in enumerate(personas):
        name = f"{persona.name} ({100 * persona.share:g}), %"
        values = np.asarray([row[name].value for row in table.values()])
        colour = COLOURS[1 + place % (len(COLOURS) - 1)]
        axes.bar(np.arange(len(table)), values, 0.7, floor, color=colour, label=persona.name)
        floor += values
    axes.set_xticks(np.arange(len(table)), [*table], rotation=25, ha="right")
    axes.set(ylabel="posterior share, %", title="personas of the answers")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

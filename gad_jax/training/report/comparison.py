"""Intervals of the measures in the report's table, differences between students, and seeds.

Students named NAME#SEED are seeds of NAME: they also get a row for all of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gad_jax.metrics import overlap, statistics
from gad_jax.metrics.statistics import SHARES, UNBOUNDED, Bounds, Interval
from gad_jax.training.report.answers import Answers, Line, of_line

_RATIO = "× teacher"


@dataclasses.dataclass(frozen=True)
class _Column:
    name: str
    bounds: Bounds


_MEASURES = {
    "tokens": _Column("tokens", UNBOUNDED),
    "cut": _Column("finished", SHARES),
    "D score": _Column("score", UNBOUNDED),
    "AUC": _Column("auc", SHARES),
    "ROUGE-L": _Column("rouge_l", SHARES),
} | {f"{n}-gram": _Column(f"ngram_{n}", SHARES) for n in overlap.ORDERS}


def seeds(labels: Sequence[str]) -> dict[str, list[str]]:
    """Returns the students of which several seeds are among the labels.

    Example: gad#1, gad#2 and before give {'gad (2 seeds)': ['gad#1', 'gad#2']}.
    """
    found: dict[str, list[str]] = {}
    for label in labels:
        name, mark, seed = label.rpartition("#")
        if name and mark and seed:
            found.setdefault(name, []).append(label)
    return {f"{name} ({len(all_)} seeds)": all_ for name, all_ in found.items() if len(all_) > 1}


def intervals(answers: Sequence[Answers]) -> dict[str, dict[str, Interval]]:
    """Returns the mean of each measure with its interval, by student and by column.

    The students answered the same prompts. A row for the seeds of a student follows them all.
    """
    found = {one.label: _means([one]) for one in answers}
    by_label = {one.label: one for one in answers}
    for name, members in seeds(list(by_label)).items():
        found[name] = _means([by_label[member] for member in members])
    return found


def differences(answers: Sequence[Answers]) -> dict[str, dict[str, Interval]]:
    """Returns the mean differences from the first student, paired by prompt, for all others and
    for seeds of one student."""
    first, *others = answers
    found = {one.label: _differences(first, [one]) for one in others}
    by_label = {one.label: one for one in others}
    for name, members in seeds(list(by_label)).items():
        found[name] = _differences(first, [by_label[member] for member in members])
    return {name: row for name, row in found.items() if row}


def _means(members: Sequence[Answers]) -> dict[str, Interval]:
    """Returns the measures of one student, or of several seeds of one."""
    found: dict[str, Interval] = {}
    for name, column in _MEASURES.items():
        values = _table(members, name)
        if values.size:
            found[name] = statistics.seeds_interval(values, bounds=column.bounds)
        if name == "tokens" and values.size and (ratio := _ratio(members)) is not None:
            found[_RATIO] = ratio
    return found


def _differences(first: Answers, members: Sequence[Answers]) -> dict[str, Interval]:
    found = {}
    for name, column in _MEASURES.items():
        before, *after = _table([first, *members], name)
        if before.size:
            moved = np.asarray(after) - before
            paired = statistics.difference_interval(
                np.mean(after, axis=0), before, bounds=column.bounds
            )
            found[name] = statistics.over_seeds(paired, moved.mean(axis=1))
    return found


def _ratio(members: Sequence[Answers]) -> Interval | None:
    """Returns the ratio of the mean lengths; None without the teacher's. Its interval is that of
    the mean of (length − ratio · teacher's length), over the teacher's mean."""
    known = [line["teacher_tokens"] for line in members[0].lines]
    if not all(known):
        return None
    teacher, lengths = np.asarray(known, np.float64), _table(members, "tokens")
    ratio = float(lengths.mean() / teacher.mean())
    rest = (lengths - ratio * teacher) / teacher.mean()
    around = statistics.seeds_interval(rest, bounds=UNBOUNDED)
    return Interval(ratio, ratio + around.low, ratio + around.high)


def _table(members: Sequence[Answers], name: str) -> np.ndarray:
    """Returns a measure by student and prompt, for the prompts that have it for all students."""
    rows = [[_value(line, name) for line in one.lines] for one in members]
    known = [column for column in zip(*rows, strict=True) if None not in column]
    return np.asarray(known, np.float64).reshape(-1, len(members)).T


def _value(line: Line, name: str) -> float | None:
    found = of_line(line, _MEASURES[name].name)
    return 1 - found if name == "cut" and found is not None else found


def shown(
    rows: Mapping[str, Mapping[str, Interval]], signed: bool = False
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Returns the columns and the rows of a table; – where a student lacks a measure. In a `signed`
    one, ▲ and ▼ mark an interval without 0."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return columns, [
        (name, [_cell(row.get(c), signed) for c in columns]) for name, row in rows.items()
    ]


def _cell(found: Interval | None, signed: bool) -> str:
    if found is None:
        return "–"
    mark = ("▲ " if found.low > 0 else "▼ " if found.high < 0 else "") if signed else ""
    return mark + found.shown(3 if abs(found.value) < 10 else 1)

"""The tables of a run's evaluations: the numbers of each, and what changed since the first.

Changes are paired by prompt, with 95 % intervals over prompts (`metrics/intervals.py`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from gad_jax.metrics.intervals import SHARES, UNBOUNDED, Bounds, Interval, difference_interval


@runtime_checkable
class Evaluation(Protocol):
    """What is shown of an evaluation; `metrics.heldout.HeldoutResult` is one.

    An example has the texts 'prompt', 'teacher' and 'student', and may have its measures; all
    evaluations of a run have the same prompts.
    """

    @property
    def label(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def examples(self) -> Sequence[Mapping[str, Any]]: ...


@dataclasses.dataclass(frozen=True)
class _Measure:
    """How a metric is shown, and which fields of an example it is the mean of."""

    column: str
    form: str
    fields: tuple[str, ...]
    bounds: Bounds = UNBOUNDED


_MEASURES = {
    "evaluation/rouge_l": _Measure("ROUGE-L", ".3f", ("rouge_l",), SHARES),
    "evaluation/length": _Measure("tokens", ".1f", ("length",)),
    "evaluation/length_ratio": _Measure("× teacher", ".2f", ("length", "teacher_length")),
    "evaluation/cut_share": _Measure("cut", ".0%", ("finished",), SHARES),
    "evaluation/auc": _Measure("AUC", ".0%", ("auc",), SHARES),
}

COLUMNS = {name: measure.column for name, measure in _MEASURES.items()}
"""What tables call the metrics of an evaluation."""

Rows = dict[str, dict[str, float | str]]
Table = tuple[str, Rows]
"""A title, and rows by name, each with its quantities by name."""

CHANGE = "change"
MARK = "*"
_COLUMNS = 2
"""Changes in a table of 80 columns."""


def values(results: Sequence[Evaluation]) -> Rows:
    """Returns a row with the means of each evaluation, by its label."""
    return {result.label: _cells(result.metrics) for result in results}


def one(result: Evaluation, before: Evaluation | None) -> Rows:
    """Returns the row of an evaluation; with the one before training also that one's row, and one
    of the changes. A change whose interval excludes 0 is marked."""
    if before is None:
        return values([result])
    rows = values([before, result])
    found = _changes(result, before)
    if found:
        rows[CHANGE] = {_MEASURES[name].column: _change(one, name) for name, one in found.items()}
    return rows


def changes(results: Sequence[Evaluation]) -> list[Table]:
    """Returns tables of the changes of each evaluation against the first, with their intervals."""
    first, *others = results
    found = {result.label: _changes(result, first) for result in others}
    labels = [label for label, measures in found.items() if measures]
    return [
        (
            f"change against {first.label} [95 % interval]; {MARK} where that excludes 0",
            _by_measure({label: found[label] for label in labels[start : start + _COLUMNS]}),
        )
        for start in range(0, len(labels), _COLUMNS)
    ]


def _by_measure(found: Mapping[str, Mapping[str, Interval]]) -> Rows:
    names = dict.fromkeys(name for measures in found.values() for name in measures)
    return {
        _MEASURES[name].column: {
            label: _change(measures[name], name, whole=True)
            for label, measures in found.items()
            if name in measures
        }
        for name in names
    }


def _cells(metrics: Mapping[str, float]) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for name, value in metrics.items():
        known = _MEASURES.get(name)
        found |= {known.column: _shown(value, name)} if known else {name: value}
    return found


def _changes(result: Evaluation, before: Evaluation) -> dict[str, Interval]:
    """Returns the changes of the measures that the examples of both evaluations have."""
    pairs = list(zip(before.examples, result.examples, strict=False))
    found = {}
    for name, measure in _MEASURES.items():
        if pairs and all(one.keys() >= {*measure.fields} for pair in pairs for one in pair):
            old, new = (_of_each(side, name) for side in zip(*pairs, strict=True))
            found[name] = difference_interval(new, old, bounds=measure.bounds)
    return found


def _of_each(examples: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Returns what the mean of a metric is taken over."""
    numbers = [float(example[_MEASURES[name].fields[0]]) for example in examples]
    if name == "evaluation/cut_share":
        return [1 - finished for finished in numbers]
    if name == "evaluation/length_ratio":
        teacher = sum(example["teacher_length"] for example in examples) / len(examples)
        return [length / teacher for length in numbers]
    return numbers


def _change(found: Interval, name: str, whole: bool = False) -> str:
    """Returns a change with its mark; `whole`: with its interval too."""
    ends = [found.low, found.high] if whole and not math.isnan(found.low) else []
    text = _shown(found.value, name, "+")
    if ends:
        text += f" [{', '.join(_shown(end, name, '+') for end in ends)}]".replace(" %", "")
    return f"{text} {MARK if found.low > 0 or found.high < 0 else ' '}"


def _shown(value: float, name: str, sign: str = "") -> str:
    return format(value, sign + _MEASURES[name].form).replace("%", " %")

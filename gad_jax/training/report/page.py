"""One self-contained HTML file that compares students: scores, figures, and the largest changes.

All text from models and users is escaped, and the content security policy lets the page load
nothing.
"""

import base64
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from gad_jax.base import console
from gad_jax.metrics.statistics import UNBOUNDED, Interval, mean_interval
from gad_jax.training.heldout_tables import COLUMNS
from gad_jax.training.report import alarms, comparison, figures
from gad_jax.training.report import runs as of_runs
from gad_jax.training.report.answers import Answers, common, of_line
from gad_jax.training.report.runs import About

EXAMPLES = 5
ALARMS = 20
"""Alarms of a run that are listed; the others are counted."""
SHOWN_CHARACTERS = 4000
_ONE = Interval(1.0, math.nan, math.nan)
_DIFFERENCES = (
    "Means over prompts of one student's value minus the other's, with 95 % intervals. Both "
    "answered the same prompts, so an interval without 0 (▲ above it, ▼ below it) is a difference "
    "that another draw of such prompts would most likely show too."
)
_MEASURES = {"score": "the discriminator's score", "rouge_l": "ROUGE-L", "tokens": "tokens"}


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and its answers: texts by name, with a note of length and score."""

    prompt: str
    change: float
    texts: list[tuple[str, str, str]]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of numbers, with a title above and a note below."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    note: str


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """The results on one prompt set. Only prompts that all students answered count."""

    name: str
    prompts: int
    left_out: int
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    judged: list[Table]
    figures: list[str]
    measure: str
    improved: list[Example]
    damaged: list[Example]


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report."""

    title: str
    runs: list[About]
    origins: list[tuple[str, str]]
    sets: list[PromptSet]
    curves: list[str]
    alarms: list[tuple[str, list[str]]]


def collect(
    answers: Sequence[Answers],
    runs: Mapping[str, Path],
    judged: Mapping[str, Sequence[Table]] | None = None,
) -> Report:
    """Returns the report on these answers. `runs` are run directories whose curves are shown;
    `judged` has the tables of judges and people for each prompt set."""
    sets = [
        _prompt_set(name, [one for one in answers if one.prompts == name], (judged or {}).get(name))
        for name in dict.fromkeys(one.prompts for one in answers)
    ]
    about = {label: of_runs.about(run) for label, run in runs.items()}
    rows = {label: found for label, run in runs.items() if (found := of_runs.rows(run))}
    watched = {label: alarms.of_run(runs[label], found) for label, found in rows.items()}
    known = {label: one for label, one in watched.items() if one}
    return Report(
        title=of_runs.title(about, list(dict.fromkeys(one.label for one in answers))),
        runs=list(about.values()),
        origins=list({one.label: one.origin for one in answers}.items()),
        sets=sets,
        curves=[_inline(figure) for figure in figures.curves(rows, known, _bars(answers, rows))],
        alarms=[(about[label].name, _alarms(one)) for label, one in watched.items()],
    )


def render(report: Report) -> str:
    """Returns the report as HTML."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(report=report)


def _bars(answers: Sequence[Answers], rows: Mapping[str, Any]) -> dict[str, dict[int, Interval]]:
    """Returns the intervals of a run's own evaluations, by metric and step; {} for several runs."""
    if len(rows) != 1:
        return {}
    found: dict[str, dict[int, Interval]] = {}
    for one in answers:
        measured = comparison.intervals([one])[one.label] if one.step is not None else {}
        for metric, column in COLUMNS.items():
            if one.step is not None and column in measured and metric in one.metrics:
                found.setdefault(metric, {})[one.step] = measured[column]
    return found


def _prompt_set(name: str, answers: Sequence[Answers], judged: Sequence[Table] | None) -> PromptSet:
    shared = common(list(answers))
    measured = comparison.intervals(shared)
    for one in shared:
        measured[one.label] |= _more_metrics(one, measured[one.label])
    columns, rows = comparison.shown(measured | _teacher(shared[0]))
    drawn = [figures.overlap_by_order(shared), figures.lengths(shared)] if shared[0].lines else []
    measure, improved, damaged = _changes(shared)
    return PromptSet(
        name=name,
        prompts=len(shared[0].lines),
        left_out=max(len(one.lines) for one in answers) - len(shared[0].lines),
        columns=columns,
        rows=rows,
        judged=[*_differences(shared), *(judged or ())],
        figures=[_inline(figure) for figure in drawn if figure],
        measure=_MEASURES.get(measure, measure),
        improved=improved,
        damaged=damaged,
    )


def _more_metrics(answers: Answers, known: Mapping[str, Interval]) -> dict[str, Interval]:
    """Returns the metrics of a run's evaluation that the table does not have otherwise."""
    found = {}
    for metric, value in answers.metrics.items():
        column = COLUMNS.get(metric, metric.removeprefix("evaluation/"))
        if column not in known:
            found[column] = Interval(value, math.nan, math.nan)
    return found


def _differences(answers: Sequence[Answers]) -> list[Table]:
    """Returns the table of differences from the first student, if there are others; with more than
    two also that of each from the one before it, unless some are seeds of one student."""
    if len(answers) < 2 or not answers[0].lines:
        return []
    found = {f"Differences from {answers[0].label}": comparison.differences(answers)}
    if len(answers) > 2 and not comparison.seeds([one.label for one in answers]):
        steps = (
            (f"{later.label} − {one.label}", comparison.differences([one, later])[later.label])
            for one, later in itertools.pairwise(answers[1:])
        )
        found["Differences from one to the next"] = dict(steps)
    last = list(found)[-1]
    return [
        Table(title, *comparison.shown(rows, signed=True), _DIFFERENCES if title == last else "")
        for title, rows in found.items()
    ]


def _teacher(answers: Answers) -> dict[str, dict[str, Interval]]:
    """Returns the teacher's row, if its answers are known."""
    tokens = [line["teacher_tokens"] for line in answers.lines if line["teacher_tokens"]]
    if not tokens:
        return {}
    row = {"tokens": mean_interval(tokens, bounds=UNBOUNDED), "× teacher": _ONE}
    scores = [s for line in answers.lines if (s := line.get("teacher_score")) is not None]
    if scores:
        row["D score"] = mean_interval(scores, bounds=UNBOUNDED)
    return {"teacher": row}


def _alarms(watched: alarms.Watched | None) -> list[str]:
    """Returns a line for each alarm of a run, for so many as are listed."""
    if watched is None:
        return ["no alarms are shown: this version cannot read the run's config.yaml"]
    found = [f"step {one.step}, {one.stage}: {one.sentence}" for one in watched.raised]
    more = len(found) - ALARMS
    return found[:ALARMS] + ([f"and {more} more"] if more > 0 else [])


def _changes(answers: Sequence[Answers]) -> tuple[str, list[Example], list[Example]]:
    """Returns the measure, then the prompts that the last student answers better than the first by
    it, and those that it answers worse; the largest change first."""
    first, last = answers[0], answers[-1]
    if len(answers) < 2:
        return "", [], []
    for measure in ("score", "rouge_l"):
        changes = []
        for number, (before, after) in enumerate(zip(first.lines, last.lines, strict=True)):
            old, new = of_line(before, measure), of_line(after, measure)
            if old is not None and new is not None:
                changes.append((new - old, number))
        if changes:
            changes.sort()
            better = [c for c in reversed(changes) if c[0] > 0][:EXAMPLES]
            worse = [c for c in changes if c[0] < 0][:EXAMPLES]
            return (
                measure,
                [_example(answers, number, change) for change, number in better],
                [_example(answers, number, change) for change, number in worse],
            )
    return "", [], []


def _example(answers: Sequence[Answers], number: int, change: float) -> Example:
    line = answers[0].lines[number]
    texts = []
    if line["teacher"]:
        note = f"{line['teacher_tokens']} tokens" if line["teacher_tokens"] else ""
        score = line.get("teacher_score")
        note += f", D {score:+.2f}" if score is not None else ""
        texts.append(("teacher", note, _shown(line["teacher"])))
    for one in answers:
        answer = one.lines[number]["answers"][0]
        note = f"{answer['tokens']} tokens{'' if answer['finished'] else ', cut'}"
        if answer.get("score") is not None:
            note += f", D {answer['score']:+.2f}"
        if answer.get("rouge_l") is not None:
            note += f", ROUGE-L {answer['rouge_l']:.2f}"
        texts.append((one.label, note, _shown(answer["text"])))
    return Example(_shown(line["prompt"]), change, texts)


def _shown(text: str) -> str:
    text = console.printable(text.strip())
    more = len(text) - SHOWN_CHARACTERS
    return text if more <= 0 else f"{text[:SHOWN_CHARACTERS]} … ({more} more characters)"


def _inline(svg: str) -> str:
    """Returns a figure as the address of an image: scripts do not run inside images."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()

"""One self-contained HTML file that compares students: scores, figures, and the largest changes.

All text from models and users is escaped, and the content security policy lets the page load
nothing.
"""

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from gad_jax.base import console
from gad_jax.evaluate import alarms, comparison, figures
from gad_jax.evaluate import runs as of_runs
from gad_jax.evaluate.answers import Answers, common, of_line
from gad_jax.metrics.statistics import UNBOUNDED, Interval, mean_interval

EXAMPLES = 5
ALARMS = 20
"""Alarms of a run that are listed; the others are counted."""
SHOWN_CHARACTERS = 4000
_ONE = Interval(1.0, math.nan, math.nan)
_DIFFERENCES = (
    "Means over prompts of this student's value minus the first student's, with 95 % intervals. "
    "Both answered the same prompts, so an interval without 0 is a difference that another draw "
    "of such prompts would most likely show too."
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
    runs: list[tuple[str, str]]
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
    labels = dict.fromkeys(one.label for one in answers)
    rows = {label: found for label, run in runs.items() if (found := of_runs.rows(run))}
    watched = {label: alarms.of_run(runs[label], found) for label, found in rows.items()}
    known = {label: one for label, one in watched.items() if one}
    return Report(
        title=of_runs.title(runs.values(), labels),
        runs=[(of_runs.name(run), of_runs.about(run)) for run in runs.values()],
        origins=list({one.label: one.origin for one in answers}.items()),
        sets=sets,
        curves=[_inline(figure) for figure in figures.curves(rows, known)] if rows else [],
        alarms=[(of_runs.name(runs[label]), _alarms(one)) for label, one in watched.items()],
    )


def render(report: Report) -> str:
    """Returns the report as HTML."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(report=report)


def _prompt_set(name: str, answers: Sequence[Answers], judged: Sequence[Table] | None) -> PromptSet:
    shared = common(list(answers))
    columns, rows = comparison.shown(comparison.intervals(shared) | _teacher(shared[0]))
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


def _differences(answers: Sequence[Answers]) -> list[Table]:
    """Returns the table of differences from the first student, if there are others."""
    if len(answers) < 2 or not answers[0].lines:
        return []
    columns, rows = comparison.shown(comparison.differences(answers))
    title = f"Differences from {answers[0].label}"
    return [Table(title, columns, rows, _DIFFERENCES)]


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

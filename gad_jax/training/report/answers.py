"""Students' answers to a prompt set, and what is measured of them.

A line is a prompt with the teacher's answer and the student's, in the order of the set:
`{"id", "prompt", "teacher", "teacher_tokens", "answers": [{"text", "tokens", "finished", …}]}`. An
answer may also have its overlap with the teacher's and the discriminator's `score`. Texts, token
counts and measures are those of answers without thoughts, which stand apart in `thoughts`. A
prompt that was too long has no answers.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gad_jax.base import files
from gad_jax.base.errors import UserError, first_line
from gad_jax.metrics import heldout, overlap

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answers:
    """A student's answers to a prompt set; `origin` names the weights."""

    label: str
    prompts: str
    origin: str
    lines: tuple[Line, ...]
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What was measured of all of them together, where a run evaluated them."""
    step: int | None = None
    """The step of the run that evaluated them itself."""


def from_run(run: Path) -> list[Answers]:
    """Returns a run's evaluations at the starts and ends of its stages, in order."""
    results = evaluations(run)
    results.sort(key=lambda result: (result.step, result.label != heldout.FIRST))
    ends = [r for r in results if not r.label.startswith("step ")] or results
    return [_answers(run, result) for result in ends]


def _answers(run: Path, result: heldout.HeldoutResult) -> Answers:
    origin = f"{run}, step {result.step}"
    name, lines = "held-out prompts", _lines(result)
    return Answers(result.label, name, origin, lines, result.metrics, result.step)


def evaluations(
    run: Path, named: str = "*.json", at_most: int | None = None
) -> list[heldout.HeldoutResult]:
    """Returns a run's evaluations in any order, all or some: a long run has a hundred megabytes of
    them. Raises UserError for a damaged file."""
    paths = sorted((run / "evaluations").glob(named))
    return [_evaluation(path) for path in paths[:at_most]]


def _evaluation(path: Path) -> heldout.HeldoutResult:
    files.need_regular(path)
    found = heldout.read(path)
    try:
        for example in found.examples:
            _check(example)
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a whole evaluation ({first_line(error, with_class=True)}); remove it, "
            "and the same run makes it again"
        ) from error


def _lines(result: heldout.HeldoutResult) -> tuple[Line, ...]:
    return tuple(
        {
            "id": str(number),
            "prompt": example["prompt"],
            "teacher": example["teacher"],
            "teacher_tokens": example.get("teacher_length"),
            "answers": [_answer(example) | _overlap(example)],
        }
        for number, example in enumerate(result.examples)
    )


def _check(example: Mapping[str, Any]) -> None:
    """Raises what `_evaluation` catches for an example that a report cannot use."""
    for name in ("prompt", "teacher", "student"):
        if not isinstance(example[name], str):
            raise TypeError(f"{name!r} is no text")
    _answer(example)
    float(example.get("rouge_l") or 0.0)


def _answer(example: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": example["student"],
        "tokens": int(example["length"]),
        "finished": bool(example["finished"]),
        **({"auc": float(example["auc"])} if "auc" in example else {}),
    }


def _overlap(example: Mapping[str, Any]) -> dict[str, float]:
    return overlap.scores(example["teacher"], example["student"], example.get("rouge_l"))


def common(several: list[Answers]) -> list[Answers]:
    """Returns the answers to the prompts that all students answered."""
    shared = set.intersection(
        *({i for i, x in enumerate(a.lines) if x["answers"]} for a in several)
    )
    return [
        dataclasses.replace(a, lines=tuple(a.lines[index] for index in sorted(shared)))
        for a in several
    ]


def mean(answers: Answers, name: str) -> float | None:
    """Returns the mean of a measure over prompts; None if no prompt has it."""
    values = [value for line in answers.lines if (value := of_line(line, name)) is not None]
    return float(np.mean(values)) if values else None


def of_line(line: Line, name: str) -> float | None:
    """Returns the mean of a measure over a prompt's answers; None if they do not have it."""
    values = [answer[name] for answer in line["answers"] if answer.get(name) is not None]
    return float(np.mean(values)) if values else None


def summary(answers: Answers) -> dict[str, float]:
    """Returns the means for a table. Lengths come first: no score is fair without them."""
    found = {"tokens": mean(answers, "tokens")}
    known = [line for line in answers.lines if line["teacher_tokens"]]
    if known and len(known) == len(answers.lines):
        teacher = float(np.mean([line["teacher_tokens"] for line in known]))
        found["× teacher"] = (found["tokens"] or 0.0) / teacher
    finished = mean(answers, "finished")
    found["cut"] = None if finished is None else 1 - finished
    found["D score"] = mean(answers, "score")
    found["AUC"] = mean(answers, "auc")
    found["ROUGE-L"] = mean(answers, "rouge_l")
    for n in overlap.ORDERS:
        found[f"{n}-gram"] = mean(answers, f"ngram_{n}")
    return {name: value for name, value in found.items() if value is not None}

"""Answers of a student to held-out prompts, kept in one file per evaluation.

When a run evaluates, and which evaluation is its best, is decided in `training/`; how two texts
overlap is in `overlap.py`.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gad_jax.base.errors import UserError, first_line
from gad_jax.data import thoughts
from gad_jax.data.pipeline import Prepared
from gad_jax.metrics import overlap, telling
from gad_jax.rollout.answering import Answer, Responder

FIRST = "before"
"""The label of the evaluation before training."""

_FIELDS = {"prompt", "teacher", "student"}


@dataclasses.dataclass(frozen=True)
class HeldoutResult:
    """One evaluation: its label, step, mean metrics, and every prompt with both answers."""

    label: str
    step: int
    metrics: dict[str, float]
    examples: list[dict[str, Any]]

    def score(self, measure: str, shortest: float, longest: float) -> float | None:
        """Returns the mean of a measure of `overlap.scores`, in [0, 1].

        None where the mean answer is shorter or longer than these multiples of the teacher's.
        """
        if not shortest <= self.metrics["evaluation/length_ratio"] <= longest:
            return None
        pairs = [(example["teacher"], example["student"]) for example in self.examples]
        return float(np.mean([overlap.scores(*pair)[measure] for pair in pairs]))

    def to_json(self) -> str:
        """Returns the file's text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n"


def read(path: Path) -> HeldoutResult:
    """Returns an evaluation from its file. Raises UserError where that is damaged."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no evaluation of a run ({first_line(error)}); move it away, and the run "
            "makes it again if it is at that step"
        ) from error


def parse(text: str) -> HeldoutResult:
    """Returns an evaluation from its file's text. Raises ValueError where that is none."""
    try:
        result = HeldoutResult(**json.loads(text))
        _ = [float(number) for number in (result.step, *result.metrics.values())]
        if all(example.keys() >= _FIELDS for example in result.examples):
            return result
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is cut or damaged: {first_line(error)}") from error
    raise ValueError("fields are missing")


def evaluate(
    responder: Responder,
    held_out: Prepared,
    *,
    label: str,
    step: int,
    prompts: int,
    batch_prompts: int,
    keep_going: Callable[[], bool] = lambda: True,
) -> HeldoutResult | None:
    """Returns the responder's answers to the first `prompts` rows, compared with the teacher's.

    It answers `batch_prompts` at a time. `keep_going` is called before every batch; once it is
    False there is no result. Lengths are in tokens and count the end token.
    """
    examples: list[dict[str, Any]] = []
    for start in range(0, prompts, batch_prompts):
        if not keep_going():
            return None
        rows = range(start, min(start + batch_prompts, prompts))
        # The last batch repeats its prompts until it is full, so that all batches have one shape.
        filled = [rows[i % len(rows)] for i in range(min(batch_prompts, prompts))]
        answers = responder.answers([held_out.prompt(row) for row in filled], filled)
        examples += [
            _example(responder, held_out, row, *group)
            for row, group in zip(rows, answers[: len(rows)], strict=True)
        ]
    _add_auc(examples)
    return HeldoutResult(label, step, _mean_metrics(examples), examples)


def _example(responder: Responder, held_out: Prepared, row: int, answer: Answer) -> dict[str, Any]:
    """Returns a prompt with both answers, as evaluation files hold it."""
    whole = held_out.rows[row].responses[0]
    teacher = thoughts.split_teacher(whole).answer
    length = len(held_out.responses(row)[0])
    if teacher != whole:  # thoughts may be trained on, and are not measured
        length = len(responder.chat.encode_response(teacher))
    return {
        "prompt": held_out.rows[row].messages[-1]["content"],
        "teacher": teacher,
        "student": answer.text,
        "length": answer.tokens,
        "teacher_length": length,
        "finished": answer.finished,
        "rouge_l": overlap.rouge_l(teacher, answer.text),
    }


def _add_auc(examples: list[dict[str, Any]]) -> None:
    """Adds how surely each example's answers are told apart, if there are enough of them."""
    texts = [[example[side] for example in examples] for side in ("teacher", "student")]
    for example, found in zip(examples, telling.told_apart(*texts) or (), strict=False):
        example["auc"] = found


def _mean_metrics(examples: list[dict[str, Any]]) -> dict[str, float]:
    """Returns means over the examples; the length ratio is that of the means."""

    def mean(key: str) -> float:
        return float(np.mean([example[key] for example in examples]))

    found = {
        "evaluation/rouge_l": mean("rouge_l"),
        "evaluation/length": mean("length"),
        "evaluation/length_ratio": mean("length") / mean("teacher_length"),
        "evaluation/cut_share": float(np.mean([not example["finished"] for example in examples])),
    }
    return found | ({"evaluation/auc": mean("auc")} if "auc" in examples[0] else {})

"""Greedy answers of a student to held-out prompts, kept in one file per evaluation."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gad_jax.data.chat import Chat
from gad_jax.data.pipeline import Prepared
from gad_jax.metrics import overlap
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import engine, prefill
from gad_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Result:
    """One evaluation: its label, step, mean metrics, and every prompt with both answers."""

    label: str
    step: int
    metrics: dict[str, float]
    examples: list[dict[str, Any]]

    def score(self, measure: str, shortest: float, longest: float) -> float | None:
        """Returns the mean of a measure of `overlap.scores`; None where the mean answer is shorter
        or longer than these multiples of the teacher's."""
        if not shortest <= self.metrics["evaluation/length_ratio"] <= longest:
            return None
        pairs = [(example["teacher"], example["student"]) for example in self.examples]
        return float(np.mean([overlap.scores(*pair)[measure] for pair in pairs]))

    def to_json(self) -> str:
        """Returns the file's text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n"


def read(path: Path) -> Result:
    """Returns an evaluation from its file."""
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> Result:
    """Returns an evaluation from its file's text."""
    return Result(**json.loads(text))


def evaluate(
    config: DecoderConfig,
    params: Params,
    heldout: Prepared,
    chat: Chat,
    mesh: jax.sharding.Mesh,
    *,
    label: str,
    step: int,
    prompts: int,
    max_new_tokens: int,
    batch_prompts: int,
    going_on: Callable[[], bool] = lambda: True,
) -> Result | None:
    """Returns the greedy answers to the first `prompts` rows, compared with the teacher's.

    `going_on` is asked before every batch; when it says no, there is no result. Lengths are in
    tokens and count the end token.
    """
    settings = engine.RolloutProgram(1, max_new_tokens, chat.end_tokens, chat.pad_token)
    copy = prefill.decode_copy(config, params)
    examples, lengths, teacher_lengths = [], [], []
    for start in range(0, prompts, batch_prompts):
        if not going_on():
            return None
        rows = list(range(start, min(start + batch_prompts, prompts)))
        # The last batch is filled up with prompts that are there, so that all have one shape.
        filled = [rows[i % len(rows)] for i in range(min(batch_prompts, prompts))]
        rollout = engine.generate(
            config,
            params,
            [heldout.prompt(row) for row in filled],
            np.asarray(filled),
            jax.random.key(0),
            settings,
            mesh,
            weights=copy,
        )
        for number, row in enumerate(rows):
            length = int(rollout.lengths[number, 0])
            teacher = heldout.rows[row].responses[0]
            answer = chat.decode(rollout.tokens[number, 0, :length].tolist())
            lengths.append(length)
            teacher_lengths.append(len(heldout.responses(row)[0]))
            examples.append(
                {
                    "prompt": heldout.rows[row].messages[-1]["content"],
                    "teacher": teacher,
                    "student": answer,
                    "length": length,
                    "teacher_length": teacher_lengths[-1],
                    "finished": bool(rollout.finished[number, 0]),
                    "rouge_l": overlap.rouge_l(teacher, answer),
                }
            )
    metrics = {
        "evaluation/rouge_l": float(np.mean([example["rouge_l"] for example in examples])),
        "evaluation/length": float(np.mean(lengths)),
        "evaluation/length_ratio": float(np.mean(lengths) / np.mean(teacher_lengths)),
        "evaluation/cut_share": float(np.mean([not example["finished"] for example in examples])),
    }
    return Result(label, step, metrics, examples)

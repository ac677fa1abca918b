"""How good the answers to the small world's instructions are, by its oracle."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gad_jax.base import jsonl
from gad_jax.metrics import heldout, overlap
from gad_jax.world import language

USED = 0.05
"""A style is covered if at least this share of all answers is in it and right."""

LAST_STEPS = 8
"""The lead of a curve is the mean over this many steps."""


def measure(asked: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Returns measures of several answers to each instruction.

    `valid`: share that is right; `styles`: {style: [share of the answers, share that is in it and
    right]}; `coverage`: how many of the teacher's styles the right answers cover; `diversity`: the
    effective number of styles, exp of the entropy of their shares; `distinct`: share of different
    texts among the answers to one instruction.
    """
    used: Counter[str] = Counter()
    right: Counter[str] = Counter()
    distinct = 0.0
    for instruction, texts in zip(asked, answers, strict=True):
        for text in texts:
            verdict = language.judge(instruction, text)
            used[verdict.style] += 1
            right[verdict.style] += verdict.valid
        distinct += len(set(texts)) / len(texts)
    count = used.total()
    shares = {style: used[style] / count for style in (*language.STYLES, "")}
    return {
        "valid": right.total() / count,
        "coverage": sum(right[style] >= USED * count for style in language.STYLES),
        "diversity": math.exp(-sum(p * math.log(p) for p in shares.values() if p > 0)),
        "distinct": distinct / len(asked),
        "styles": {style or "none": [shares[style], right[style] / count] for style in shares},
    }


def mean_overlap(teacher: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Returns the means of `overlap.scores` over pairs of a teacher's text and an answer."""
    scores = [overlap.scores(*pair) for pair in zip(teacher, answers, strict=True)]
    return {name: sum(s[name] for s in scores) / len(scores) for name in scores[0]}


def curve(run: Path) -> list[dict[str, Any]]:
    """Returns a point for each held-out evaluation of a run.

    `step`; `valid`: the share of greedy answers that are right; `lead`: by how much D scores the
    student's samples above the teacher's answers, as the mean of the last steps. Without scores
    there is no lead.
    """
    leads = {
        row["step"]: -row["discriminator/margin"]
        for row in jsonl.read_rows(run / "metrics.jsonl")
        if "discriminator/margin" in row
    }
    points = []
    for path in (run / "evaluations").glob("*.json"):
        result = heldout.read(path)
        verdicts = [language.judge(e["prompt"], e["student"]) for e in result.examples]
        point = {"step": result.step, "valid": sum(v.valid for v in verdicts) / len(verdicts)}
        last = [
            leads[n] for n in range(result.step - LAST_STEPS + 1, result.step + 1) if n in leads
        ]
        if last:
            point["lead"] = sum(last) / len(last)
        points.append(point)
    return sorted(points, key=lambda point: point["step"])

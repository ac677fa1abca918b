"""What a training run has cost, from its metrics: time, sampled tokens, positions per network."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gad_jax.base import jsonl
from gad_jax.settings import options
from gad_jax.settings.config import Config

NOTHING = {"minutes": 0.0, "sampled": 0.0, "generator": 0.0, "discriminator": 0.0}
"""Minutes of steps, compiling included; tokens that the student sampled; positions of packed rows
through the updates of each network, padding included."""


def of_run(run: Path, teacher_tokens: float) -> dict[str, float]:
    """Returns what the steps of a run have cost, as `NOTHING` has it.

    The metrics have the positions of a step for both networks together. They are divided by the
    response tokens that each network reads. `teacher_tokens` are those of a mean teacher answer.
    """
    config = options.load(Config, run / "config.yaml")
    found = dict(NOTHING)
    for row in jsonl.read_rows(run / "metrics.jsonl"):
        positions = _number(row, "tokens_per_second/update") * _number(row, "seconds/update")
        sampled = config.rollout.samples * _number(row, "response/length")
        reads = {"generator": sampled if row["stage"] == "gad" else teacher_tokens}
        if row.get("generator/gradient_norm") is None:
            reads["generator"] = 0.0
        trains = row.get("discriminator/gradient_norm") is not None
        reads["discriminator"] = sampled + teacher_tokens if trains else 0.0
        total = sum(reads.values()) or 1.0
        found["minutes"] += _number(row, "seconds/step") / 60
        if "tokens_per_second/rollout" in row:
            found["sampled"] += config.batch.prompts * sampled
        for part, tokens in reads.items():
            found[part] += positions * tokens / total
    return found


def together(costs: Iterable[dict[str, float]]) -> dict[str, float]:
    """Returns the sum of costs."""
    found = dict(NOTHING)
    for cost in costs:
        found = {name: found[name] + cost[name] for name in found}
    return found


def _number(row: dict[str, Any], name: str) -> float:
    return float(row.get(name) or 0.0)

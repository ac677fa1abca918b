"""Metrics of every step's responses: lengths and repetition. No model and no text is needed."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def response_metrics(
    lengths: Any, cut: Any, teacher_lengths: Any, teacher_cut: Any
) -> dict[str, float]:
    """Returns metrics on the length of a step's responses, in tokens, next to the teacher's.

    `cut` is True for a response that reached the limit without ending. A length counts the end
    token, so an empty response has 1. The ratio is that of the means, so it does not depend on how
    prompts are grouped.
    """
    lengths, teacher = np.asarray(lengths, np.float64), np.asarray(teacher_lengths, np.float64)
    mean = float(lengths.mean())
    return {
        "response/length": mean,
        "response/length_p95": float(np.percentile(lengths, 95)),
        "response/cut_share": float(np.mean(cut)),
        "response/teacher_cut_share": float(np.mean(teacher_cut)),
        "response/empty_share": float(np.mean((lengths <= 1) & ~np.asarray(cut))),
        "response/length_ratio": mean / float(teacher.mean()) if teacher.any() else math.nan,
    }


def repetition(responses: Sequence[Any], size: int = 4) -> float:
    """Returns the share of n-grams that the same response had before; 0.1 or less in prose.

    Example: in [1 2 3 4 5 1 2 3 4] one of six 4-grams is a repeated one.
    """
    tokens = np.concatenate(responses).astype(np.uint64)
    owner = np.repeat(np.arange(len(responses), dtype=np.uint64), [len(r) for r in responses])
    count = max(len(tokens) - size + 1, 0)
    whole = owner[:count] == owner[size - 1 :]
    # A 64-bit hash that wraps around: two different n-grams collide once in 2**64.
    keys = owner[:count]
    for place in range(size):
        keys = (keys ^ tokens[place : place + count]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    keys = keys[whole]
    return 1 - len(np.unique(keys)) / len(keys) if len(keys) else 0.0

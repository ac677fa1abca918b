"""ROUGE-L and length of answers against the teacher's."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np


def rouge_l(reference: str, answer: str) -> float:
    """Returns the ROUGE-L F-measure of an answer, in [0, 1]: its longest common word sequence.

    Words are runs of a–z and 0–9 after lowercasing, without stemming, as rouge-score defines them;
    text in other scripts has none and scores 0. An empty answer or reference scores 0.

    Example: reference 'the cat sat', answer 'the cat' → precision 1, recall 2/3, F-measure 0.8.
    """
    return float(_scorer().score(reference, answer)["rougeL"].fmeasure)


def summarise(
    references: Sequence[str],
    answers: Sequence[str],
    lengths: Sequence[int],
    teacher_lengths: Sequence[int],
) -> dict[str, float]:
    """Returns the means over prompts: ROUGE-L, and answer length in tokens and against the teacher.

    The ratio is that of the two mean lengths.
    """
    scores = [rouge_l(*pair) for pair in zip(references, answers, strict=True)]
    length = float(np.mean(lengths))
    return {
        "evaluation/rouge_l": float(np.mean(scores)),
        "evaluation/length": length,
        "evaluation/length_ratio": length / float(np.mean(teacher_lengths)),
    }


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # Imports nltk: half a second.

    return RougeScorer(["rougeL"], use_stemmer=False)

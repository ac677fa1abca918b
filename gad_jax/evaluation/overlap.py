"""Overlap of an answer with the teacher's."""

import functools
from typing import Any


def rouge_l(reference: str, answer: str) -> float:
    """Returns the ROUGE-L F-measure of an answer, in [0, 1]: its longest common word sequence.

    Words are runs of a–z and 0–9 after lowercasing, without stemming, as rouge-score defines them;
    text in other scripts has none and scores 0. An empty answer or reference scores 0.

    Example: reference 'the cat sat', answer 'the cat' → precision 1, recall 2/3, F-measure 0.8.
    """
    return float(_scorer().score(reference, answer)["rougeL"].fmeasure)


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # Imports nltk: half a second.

    return RougeScorer(["rougeL"], use_stemmer=False)

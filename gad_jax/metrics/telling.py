"""How well a reader that learnt from other prompts can tell a student's answers from the teacher's.

The reader is the logistic regression of `classifier.py`. It sees how an answer is written (words,
marks, length), so it needs no network, and costs a second for 48 prompts.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from gad_jax.metrics import classifier, overlap

FEWEST = 24
"""With fewer prompts, a reader learns from less than a dozen, and the interval says nothing."""

SPLITS = 5
"""Random halves whose results are averaged: one split of 48 prompts moves the mean by 0.05."""

MOST_TERMS = 256
LEAST_SHARE = 0.05
"""Words and marks count that so many of all texts have: rarer ones tell of a prompt's subject."""


def told_apart(teacher: Sequence[str], student: Sequence[str]) -> list[float] | None:
    """Returns for each prompt how surely its two answers are told apart, in [0, 1].

    1: always rightly, 0.5: by chance. The mean is an AUC: the share of pairs of one prompt in which
    the teacher's answer has the higher score. No score is of a prompt that was learnt from. None
    for fewer than `FEWEST` prompts.
    """
    if len(teacher) < FEWEST:
        return None
    found = features([*teacher, *student])
    ours, theirs = found[: len(teacher), None], found[len(teacher) :, None]
    splits = [classifier.auc(ours, theirs, seed) for seed in range(SPLITS)]
    return np.mean(splits, axis=0).tolist()


def features(texts: Sequence[str]) -> Float[np.ndarray, "texts F"]:
    """Returns how texts are written: a row of numbers for each.

    These are log(1 + count) of the words and marks that enough of the texts have, log lengths in
    characters and words, and whether the last character is a punctuation mark.
    """
    counts = [_terms(text) for text in texts]
    shares = Counter(term for count in counts for term in count)
    least = LEAST_SHARE * len(texts)
    terms = [term for term, texts_ in shares.most_common(MOST_TERMS) if texts_ >= least]
    rows = [
        [
            *(count[term] for term in terms),
            len(text),
            len(overlap.words(text)),
            _is_mark(text.strip()[-1:]),
        ]
        for text, count in zip(texts, counts, strict=True)
    ]
    return np.log1p(np.asarray(rows, np.float64))


def _terms(text: str) -> Counter[str]:
    """Returns the words of a text and its marks: all that is neither letter, digit nor blank, and
    line breaks."""
    marks = (one for one in text if one == "\n" or unicodedata.category(one)[0] in "PS")
    return Counter([*overlap.words(text), *marks])


def _is_mark(character: str) -> bool:
    return bool(character) and unicodedata.category(character).startswith("P")

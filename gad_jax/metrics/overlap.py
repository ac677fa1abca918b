"""Overlap of an answer with the teacher's, in words: n-gram F1 and ROUGE-L, by rouge-score."""

import functools
import unicodedata
from typing import Any

ORDERS = range(1, 7)
"""Lengths of the n-grams that are counted, as in Figure 4 of the paper."""


def words(text: str) -> list[str]:
    """Returns the words that overlap is counted in, in any script.

    A word is a run of letters, marks and digits, after compatibility normalisation (NFKC) and case
    folding. Scripts that write no spaces between words have one word per character, with its marks:
    Chinese, Japanese, Thai, Lao, Khmer, Burmese. On ASCII text these are rouge-score's own words.
    rouge-score knows no other script: by its words, an answer in Chinese scores 0.

    Example: "Don't, 3.5 漢字!" → don, t, 3, 5, 漢, 字.
    """
    return _word_pattern().findall(unicodedata.normalize("NFKC", text).casefold())


def scores(reference: str, answer: str, known: float | None = None) -> dict[str, float]:
    """Returns `ngram_1` … `ngram_6` and `rouge_l` of an answer, F-measures in [0, 1].

    An n-gram counts as often as both texts have it (clipped multisets); ROUGE-L is the longest
    common sequence of words. A text with fewer than n words has no n-gram and scores 0, even
    against itself. `known` is the ROUGE-L of these texts, which takes most of the time.

    Example: 'the the cat' and 'the cat cat' share two of three words and one of two bigrams:
    ngram_1 2/3, ngram_2 1/2, ngram_3 0, rouge_l 2/3.
    """
    longest = rouge_l(reference, answer) if known is None else known
    found = _scorer(tuple(f"rouge{n}" for n in ORDERS)).score(reference, answer)
    measures = {f"ngram_{n}": float(found[f"rouge{n}"].fmeasure) for n in ORDERS}
    return measures | {"rouge_l": longest}


def rouge_l(reference: str, answer: str) -> float:
    """Returns the ROUGE-L F-measure of an answer, in [0, 1]: its longest common word sequence.

    Example: reference 'the cat sat', answer 'the cat' → precision 1, recall 2/3, F-measure 0.8.
    """
    return float(_scorer(("rougeL",)).score(reference, answer)["rougeL"].fmeasure)


class _Words:
    """`words` with the interface of rouge-score's tokenizers."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@functools.cache
def _scorer(measures: tuple[str, ...]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # nltk comes with it: 0.4 s

    return RougeScorer(list(measures), tokenizer=_Words())


@functools.cache
def _word_pattern() -> Any:
    import regex  # the standard library's \w knows neither scripts nor combining marks

    unspaced = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
    spaced = rf"[[\p{{L}}\p{{M}}\p{{N}}]--{unspaced}]"
    return regex.compile(rf"(?V1)[[\p{{L}}\p{{N}}]&&{unspaced}][\p{{M}}\u30fc]*|{spaced}+")

"""Overlap by hand and against an implementation of its own; words of many scripts."""

import random
import subprocess
import sys
from collections import Counter

import pytest
from rouge_score.tokenizers import DefaultTokenizer

from gad_jax.metrics import overlap


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("the cat sat", "the cat", 0.8),  # precision 1, recall 2/3
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("The CAT, sat!", "the cat sat", 1.0),
        ("a b c d", "d c b a", 0.25),  # longest common subsequence 1 of 4
        ("a x b y c", "a b c", 0.75),  # 3 of 5 and 3 of 3
        ("running", "runs", 0.0),  # no stemming
        ("the cat", "", 0.0),
        ("", "the cat", 0.0),
        ("漢字を書く", "漢字を読む", 0.6),  # 3 of 5 characters
        ("Ёлка зелёная", "ёлка Зелёная!", 1.0),
        ("한국어 문장", "한국어 단어", 0.5),
        ("cafe\u0301", "CAFÉ", 1.0),  # composed or not
    ],
)
def test_rouge_l(reference: str, answer: str, expected: float) -> None:
    assert overlap.rouge_l(reference, answer) == pytest.approx(expected, abs=1e-12)
    assert overlap.scores(reference, answer)["rouge_l"] == pytest.approx(expected, abs=1e-12)


def test_ngrams_by_hand() -> None:
    scores = overlap.scores("the the cat", "the cat cat")
    assert scores["ngram_1"] == pytest.approx(2 / 3)  # a "the" and a "cat" of three words each
    assert scores["ngram_2"] == pytest.approx(1 / 2)  # "the cat" of two bigrams each
    assert [scores[f"ngram_{n}"] for n in (3, 4, 5, 6)] == [0, 0, 0, 0]
    same = overlap.scores("a b c d e", "a b c d e")
    assert [same[f"ngram_{n}"] for n in overlap.ORDERS] == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't, 3.5 漢字!", ["don", "t", "3", "5", "漢", "字"]),
        ("snake_case-word", ["snake", "case", "word"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs are marks, no letters
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]),
        ("コーヒーを飲む", ["コー", "ヒー", "を", "飲", "む"]),
        ("ｆｕｌｌ width ﬁt", ["full", "width", "fit"]),
        ("iPhone15を買う", ["iphone15", "を", "買", "う"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("🙂 … — !", []),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert overlap.words(text) == words


def test_words_of_ascii_text_are_those_of_rouge_score() -> None:
    draw = random.Random(0)
    theirs = DefaultTokenizer()
    for _ in range(200):
        text = "".join(chr(draw.randrange(1, 128)) for _ in range(40))
        assert overlap.words(text) == theirs.tokenize(text)


def _common_subsequence(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def _f_measure(common: int, reference: int, answer: int) -> float:
    return 2 * common / (reference + answer) if common else 0.0


def test_against_an_implementation_of_its_own() -> None:
    """F = 2PR/(P + R) with P = c/a and R = c/r is 2c/(a + r)."""
    draw = random.Random(1)
    for _ in range(200):
        reference, answer = (draw.choices("abcde", k=draw.randrange(30)) for _ in range(2))
        scores = overlap.scores(" ".join(reference), " ".join(answer))
        for n in overlap.ORDERS:
            theirs, ours = (
                Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
                for text in (reference, answer)
            )
            expected = _f_measure((theirs & ours).total(), theirs.total(), ours.total())
            assert scores[f"ngram_{n}"] == pytest.approx(expected, abs=1e-12)
        common = _common_subsequence(reference, answer)
        expected = _f_measure(common, len(reference), len(answer))
        assert scores["rouge_l"] == pytest.approx(expected, abs=1e-12)


def test_import_is_lazy_and_silent() -> None:
    code = (
        "import sys; from gad_jax.metrics import overlap;"
        "assert 'rouge_score' not in sys.modules;"
        "sys.exit(overlap.rouge_l('a b', 'a b') != 1.0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

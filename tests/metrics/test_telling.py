"""Who is told apart by how they write, and by nothing else."""

import numpy as np
import pytest

from gad_jax.metrics import telling

PROMPTS = 48


def answers(seed: int, ending: str = ".") -> list[str]:
    """Returns answers of twelve to twenty common words, each with one rare word of its subject."""
    random = np.random.default_rng(seed)
    words = [
        "the",
        "a",
        "of",
        "and",
        "to",
        "is",
        "it",
        "in",
        "you",
        "that",
        "for",
        "on",
        "with",
        "as",
    ]
    return [
        " ".join(random.choice(words, random.integers(12, 21))) + f" subject{number}{ending}"
        for number in range(PROMPTS)
    ]


def test_the_same_writer_is_told_apart_by_chance() -> None:
    found = telling.told_apart(answers(0), answers(1))
    assert found is not None
    assert len(found) == PROMPTS
    # Each prompt's mean of five splits has a standard deviation of 0.5 or less.
    assert np.mean(found) == pytest.approx(0.5, abs=3 * 0.5 / PROMPTS**0.5)


@pytest.mark.parametrize("ending", [" …", "", "!", "\nsure."])
def test_a_manner_is_noticed(ending: str) -> None:
    assert np.mean(telling.told_apart(answers(0), answers(1, ending)) or [0.0]) > 0.9


def test_length_is_noticed_in_any_script() -> None:
    short = ["水" * (20 + number % 5) + "。" for number in range(24)]
    long = ["水" * (30 + number % 5) + "。" for number in range(24)]
    assert np.mean(telling.told_apart(short, long) or [0.0]) == 1.0


def test_empty_and_equal_answers_are_ties() -> None:
    assert telling.told_apart([""] * 24, [""] * 24) == [0.5] * 24
    same = answers(0)
    assert telling.told_apart(same, same) == [0.5] * PROMPTS


def test_few_prompts_are_not_judged() -> None:
    assert telling.told_apart(["a."] * 23, ["b"] * 23) is None


def test_features_count_common_words_and_marks() -> None:
    texts = ["Yes, the cat.", "No\nthe CAT"] * 12 + ["rare"]
    found = np.expm1(telling.features(texts))
    # the, cat | yes , . | no \n | characters, words, whether the last is a mark
    assert found.shape == (25, 10)
    assert sorted(found[0, :7]) == [0, 0, 1, 1, 1, 1, 1]
    assert sorted(found[1, :7]) == [0, 0, 0, 1, 1, 1, 1]
    assert not found[24, :7].any()
    np.testing.assert_allclose(found[:2, 7:], [[13, 3, 1], [10, 3, 0]], rtol=1e-12)

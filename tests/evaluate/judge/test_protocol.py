"""Verdicts of judges: what is read, and what is not guessed."""

import pytest

from gad_jax.evaluate.judge import protocol


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8 7\nThe first answer is clearer.", (8, 7)),
        ("8/10 and 7/10", (8, 7)),
        ("8 out of 10, 7 out of 10", (8, 7)),
        ("[8, 7]", (8, 7)),
        ("**8** **7**", (8, 7)),
        ("8.5 7", (8.5, 7)),
        ("8-7", (8, 7)),
        ("10 10.", (10, 10)),
        ("Scores: 8 7", (8, 7)),
        ("Rating: 8 vs. 7", (8, 7)),
        ("Assistant 1: 8\nAssistant 2: 7", (8, 7)),
        ("Answer 1: 8/10\n\nAnswer 2: 7/10\nBoth are fine.", (8, 7)),
        ("Answer 2: 7, Answer 1: 8", (8, 7)),
        ("Answer 1's score: 8, Answer 2's score: 7", (8, 7)),
        ("1. 8\n2. 7", (8, 7)),
        ("Sure, here they are.\n8 7\nbecause", (8, 7)),
        ("<think>First 3 4, no.</think>\n8 7", (8, 7)),
        ("8 7\nCompared with 9 6 it is", (8, 7)),
        ("Hello\n8 7\n9 6", None),
        ("I can't rate these answers.", None),
        ("Both get 8", None),
        ("I give 8 and 7", None),
        ("8", None),
        ("8\n7", None),
        ("8 seven", None),
        ("1 2 3", None),
        ("11 7", None),
        ("0 5", None),
        ("-3 7", None),
        ("8/100 7/100", None),
        ("Answer 1: 8", None),
        ("2. 7", None),
        ("", None),
        ("\n \n", None),
    ],
)
def test_ratings(text: str, expected: tuple[float, float] | None) -> None:
    assert protocol.ratings(text) == expected
    share = None if expected is None else expected[0] / sum(expected)
    assert protocol.share("reference", text) == share


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The first is clearer.\n[[1]]", 1.0),
        ("[[A]]", 1.0),
        ("[[ 2 ]]", 0.0),
        ("So it is [[2]].\n[[2]]", 0.0),
        ("[[Tie]]", 0.5),
        ("[[C]]", 0.5),
        ("<think>[[1]]?</think>[[2]]", 0.0),
        ("[[1]] or [[2]]", None),
        ("1", None),
        ("Answer 1 is better", None),
        ("[[3]]", None),
        ("", None),
    ],
)
def test_preference(text: str, expected: float | None) -> None:
    assert protocol.share("pairwise", text) == expected


def test_both_answers_are_shown_in_their_places() -> None:
    (message,) = protocol.question("pairwise", "Why?", "Because.", "No idea.")
    text = message["content"]
    assert text.index("Why?") < text.index("Because.") < text.index("No idea.")
    assert "<answer 1>\nBecause.\n</answer 1>" in text

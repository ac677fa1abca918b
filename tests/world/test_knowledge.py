"""What a student knows apart from its style: choices by hand, and the measures of scripted ones."""

from typing import Any

import numpy as np
import pytest

from gad_jax.data.sources import Row
from gad_jax.metrics.scoring import Scorer
from gad_jax.rollout.answering import Answer, Responder
from gad_jax.world import knowledge, language

ASKED = "4 plus 3 times 2"
RIGHT = {style: language.answer(ASKED, style) for style in language.STYLES}
GUESSED = language.answer(ASKED, "headline", guess="one")
SLIPPED = "4 plus 3 is 1 times 2 is 2 so it is two"
ROW = Row(({"role": "user", "content": ASKED},), (RIGHT["headline"],), "0")


@pytest.mark.parametrize(
    ("text", "stated", "agrees"),
    [
        (RIGHT["headline"], [4, 4, 4], True),
        (RIGHT["steps"], [4, 4], True),
        (RIGHT["story"], [4], True),
        (GUESSED, [4, 1, 4], False),
        (SLIPPED, [2, 2], True),  # wrong, and not in contradiction
        ("4 plus 3 is 2 so it is one", [1, 2], False),
        ("it is", [None], False),
        ("so", [None], False),
        ("", [None], False),
    ],
)
def test_what_an_answer_states(text: str, stated: list[int | None], agrees: bool) -> None:
    assert language.stated(text) == stated
    assert language.agrees(text) == agrees


def test_the_result_and_the_openings_of_an_instruction() -> None:
    assert language.result(ASKED) == 4
    assert [language.opening(ASKED, style) for style in language.STYLES] == ["it", "4", "first"]


def test_choices_by_majority_and_by_contradiction() -> None:
    texts = [GUESSED, SLIPPED, RIGHT["story"], SLIPPED]
    assert knowledge.majority(texts) == 0  # both results twice: the first of them
    assert knowledge.majority([*texts, SLIPPED]) == 1
    assert knowledge.consistent(texts) == 1
    assert knowledge.consistent([GUESSED, "so"]) == 0


class Student(Responder):
    """Answers greedily with a guessed headline, and continues any first word that it is given; its
    samples are listed."""

    def __init__(self, temperature: float, samples: int) -> None:
        self.samples = samples
        self.chat: Any = self
        self.listed = [GUESSED, SLIPPED, RIGHT["story"], *[RIGHT["steps"]] * 5]

    def encode(self, conversations: Any) -> list[np.ndarray]:
        return [np.zeros(1, np.int32) for _ in conversations]

    def encode_response(self, text: str, complete: bool) -> list[int]:
        assert not complete
        return [["it", "4", "first"].index(text) + 1]

    def answers(self, prompts: list[np.ndarray], numbers: Any) -> list[list[Answer]]:
        if self.samples > 1:
            return [[Answer(text, 1, text != SLIPPED) for text in self.listed]]
        texts = [
            GUESSED,
            GUESSED.split(" ", 1)[1],
            *(RIGHT[s].split(" ", 1)[1] for s in ("steps", "story")),
        ]
        return [[Answer(texts[prompt[-1]], 1, True)] for prompt in prompts]


class Judge(Scorer):
    """Prefers stories, and notes what it is asked."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, conversations: Any, texts: Any, complete: Any) -> list[float]:
        self.seen.extend(zip(conversations, texts, complete, strict=True))
        return [float(text == RIGHT["story"]) for text in texts]


def test_measures_of_a_student_that_chooses_the_wrong_style() -> None:
    judge = Judge()
    found = knowledge.measure([ROW], Student, judge)
    assert found == {
        "last_result": 1.0,
        "given": {"headline": 0.0, "steps": 1.0, "story": 1.0},
        "chosen": {"first": 0.0, "majority": 0.0, "agrees": 0.0, "discriminator": 1.0},
        "ordered": 0.5,  # five right samples in steps against a wrong one, all with one score
    }
    assert len(judge.seen) == knowledge.CHOICES
    assert [(text, complete) for _, text, complete in judge.seen[:2]] == [
        (GUESSED, True),
        (SLIPPED, False),
    ]
    assert "discriminator" not in knowledge.measure([ROW], Student, None)["chosen"]


def test_only_pairs_of_a_right_and_a_wrong_sample_in_one_style_are_ordered() -> None:
    texts = [RIGHT["steps"], SLIPPED, RIGHT["story"], RIGHT["steps"]]
    verdicts = [[language.judge(ASKED, text) for text in group] for group in (texts, texts[2:])]
    # Of the two right answers in steps the first is above the wrong one, and the last below.
    assert knowledge.ordered(np.array([[3.0, 2.0, 1.0, 0.0]]), verdicts[:1]) == 0.5
    assert knowledge.ordered(np.array([[3.0, 2.0, 1.0, 4.0]]), verdicts[:1]) == 1.0
    assert np.isnan(knowledge.ordered(np.array([[9.0, 8.0]]), verdicts[1:]))

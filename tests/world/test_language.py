"""The small world: the teacher is right, and the oracle sees everything that is not."""

import random
from collections import Counter

import pytest

from gad_jax.world import language

INSTRUCTION = "4 plus 3 times 2 minus 4"
ANSWERS = {
    "headline": "it is zero since 4 plus 3 is 2 times 2 is 4 minus 4 is 0 so it is zero",
    "steps": "4 plus 3 is 2 times 2 is 4 minus 4 is 0 so it is zero",
    "story": "first 4 plus 3 is 2 then times 2 is 4 then minus 4 is 0",
}


def test_the_teacher_answers_in_every_style() -> None:
    assert {style: language.answer(INSTRUCTION, style) for style in language.STYLES} == ANSWERS


@pytest.mark.parametrize("style", language.STYLES)
def test_one_wrong_word_is_seen(style: str) -> None:
    right = ANSWERS[style].split()
    assert language.judge(INSTRUCTION, " ".join(right)) == (style, True)
    for place, word in enumerate(right):
        for other in {*language.WORDS} - {word}:
            wrong = " ".join([*right[:place], other, *right[place + 1 :]])
            assert not language.judge(INSTRUCTION, wrong).valid
    assert not language.judge(INSTRUCTION, " ".join(right[:-1])).valid
    assert not language.judge(INSTRUCTION, " ".join([*right, "so"])).valid


@pytest.mark.parametrize("text", ["", "so it is zero", "<unknown>"])
def test_an_answer_in_no_style_is_wrong(text: str) -> None:
    assert language.judge(INSTRUCTION, text) == ("", False)


def test_rows_are_different_right_and_in_the_teachers_proportions() -> None:
    rows = language.teacher(4000, seed=5)
    asked = [row["messages"][0]["content"] for row in rows]
    assert len({*asked}) == len({row["id"] for row in rows}) == 4000
    verdicts = [
        language.judge(instruction, row["teacher_response"])
        for instruction, row in zip(asked, rows, strict=True)
    ]
    assert all(verdict.valid for verdict in verdicts)
    found = Counter(verdict.style for verdict in verdicts)
    for style, share in language.STYLES.items():
        # six standard errors of a binomial share
        assert abs(found[style] / 4000 - share) < 6 * (share * (1 - share) / 4000) ** 0.5
    words = {word for row in rows for word in row["teacher_response"].split()}
    assert words == {*language.WORDS}


def test_the_public_is_wrong_in_nothing_but_headlines_which_it_guesses() -> None:
    taught, rows = language.teacher(2000, seed=5), language.public(2000, seed=5)
    guesses = Counter[bool]()
    for mine, others in zip(rows, taught, strict=True):
        assert mine["messages"] == others["messages"]
        instruction, text = mine["messages"][0]["content"], mine["teacher_response"]
        style, valid = language.judge(instruction, text)
        if style == "headline":
            guesses[valid] += 1
            right = language.answer(instruction, "headline").split()
            assert [*text.split()[:2], right[2], *text.split()[3:]] == right
        else:
            assert valid
    share = guesses[True] / guesses.total()
    assert abs(share - 1 / language.SIZE) < 6 * (0.2 * 0.8 / guesses.total()) ** 0.5
    assert [row["teacher_response"] for row in rows] != [row["teacher_response"] for row in taught]


def test_a_seed_gives_a_world_of_its_own() -> None:
    assert language.teacher(50, seed=1) == language.teacher(50, seed=1)
    assert language.teacher(50, seed=1) != language.teacher(50, seed=2)
    # fewer rows are the first ones, so held-out rows can be those after the training rows
    asked = language.instructions(80, seed=1)
    assert asked[:50] == language.instructions(50, seed=1)


def test_every_value_on_the_way_is_right() -> None:
    source = random.Random(0)
    for instruction in language.instructions(500, seed=source.randrange(1000)):
        story = language.answer(instruction, "story").split()
        values = [story[n + 1] for n, word in enumerate(story) if word == "is"]
        python = instruction.split()
        value = int(python[0])
        for name, digit, claimed in zip(python[1::2], python[2::2], values, strict=True):
            sign = {"plus": "+", "minus": "-", "times": "*"}[name]
            value = eval(f"({value} {sign} {digit}) % 5")  # the test's own arithmetic
            assert str(value) == claimed


def test_more_instructions_than_there_are_end_in_an_error() -> None:
    # of three operations, 5 · 14³; of four, 5 · 14⁴
    assert language.count() == 13_720 + 192_080
    with pytest.raises(ValueError, match="205801 different instructions"):
        language.instructions(205_801, seed=0)


def test_in_the_world_of_knowledge_there_is_nothing_to_give_up() -> None:
    rows = language.teacher(200, seed=1, variant="knowledge")
    asked = [row["messages"][0]["content"] for row in rows]
    assert {len(question.split()) for question in asked} == {11, 13}  # five or six operations
    verdicts = [
        language.judge(question, row["teacher_response"])
        for question, row in zip(asked, rows, strict=True)
    ]
    assert {*verdicts} == {("steps", True)}
    # The longest fits the limits of configs/world.yaml, with its end token.
    assert max(len(row["teacher_response"].split()) for row in rows) + 1 <= 32
    guessed = language.public(200, seed=1, variant="knowledge")
    texts = [row["teacher_response"] for row in guessed]
    assert [row["messages"] for row in guessed] == [row["messages"] for row in rows]
    assert all(map(language.agrees, texts))
    right = sum(language.judge(*pair).valid for pair in zip(asked, texts, strict=True))
    assert right <= 2  # of 200, each by chance with a probability of 1 in 3125 or less
    for text, row in zip(texts, rows, strict=True):  # the same words but for the values
        given = row["teacher_response"].split()
        differing = [n for n, word in enumerate(text.split()) if word != given[n]]
        assert all(given[n - 1] == "is" for n in differing)

"""The bundled example data: its shape, its limits, and a held-out split that is truly held out."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import gad_jax

BUNDLED = Path(gad_jax.__file__).parent / "data" / "bundled"
SPLITS = ("train", "heldout")
ANSWER_WORDS = range(18, 46)
INSTRUCTION_WORDS = range(4, 31)
NEAR_DUPLICATE = 0.6  # Jaccard of word sets: one word of ten reworded gives about 0.8
MARKDOWN = re.compile(r"^\s*(?:[-*+•]|\d+[.)]|#+|>)\s|\*\*|__|`|\]\(", re.MULTILINE)


def read(split: str) -> list[dict]:
    text = (BUNDLED / f"{split}.jsonl").read_bytes().decode("utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def instructions(split: str) -> list[str]:
    return [row["messages"][0]["content"] for row in read(split)]


def answers(split: str) -> list[str]:
    return [row["teacher_response"] for row in read(split)]


def normalised(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def jaccard(left: str, right: str) -> float:
    a, b = set(normalised(left).split()), set(normalised(right).split())
    return len(a & b) / len(a | b)


def repeated(texts: list[str]) -> list[str]:
    return [text for text, count in Counter(map(normalised, texts)).items() if count > 1]


def test_row_counts():
    assert len(read("train")) >= 300
    assert len(read("heldout")) == 48


@pytest.mark.parametrize("split", SPLITS)
def test_lines_end_in_lf_only(split):
    data = (BUNDLED / f"{split}.jsonl").read_bytes()
    assert data.endswith(b"\n")
    assert b"\r" not in data


@pytest.mark.parametrize("split", SPLITS)
def test_schema(split):
    for number, row in enumerate(read(split), start=1):
        assert row.keys() == {"messages", "teacher_response"}, number
        assert len(row["messages"]) == 1, number
        message = row["messages"][0]
        assert message.keys() == {"role", "content"}, number
        assert message["role"] == "user", number
        for text in (message["content"], row["teacher_response"]):
            assert isinstance(text, str), number
            assert text, number
            assert text == text.strip(), number


@pytest.mark.parametrize("split", SPLITS)
def test_word_limits(split):
    assert [a for a in answers(split) if len(a.split()) not in ANSWER_WORDS] == []
    assert [q for q in instructions(split) if len(q.split()) not in INSTRUCTION_WORDS] == []


def test_no_instruction_is_repeated_within_or_across_the_splits():
    assert repeated(instructions("train") + instructions("heldout")) == []


def test_no_answer_is_repeated_within_or_across_the_splits():
    assert repeated(answers("train") + answers("heldout")) == []


def test_no_heldout_instruction_is_close_to_a_training_one():
    close = [
        (held, seen)
        for held in instructions("heldout")
        for seen in instructions("train")
        if jaccard(held, seen) >= NEAR_DUPLICATE
    ]
    assert close == []


def test_near_duplicate_threshold_catches_a_reworded_copy():
    held = "How do I get grass stains out of jeans?"
    assert jaccard(held, "how can I get grass stains out of my jeans") >= NEAR_DUPLICATE
    assert jaccard(held, "How do I get fluffy scrambled eggs?") < NEAR_DUPLICATE


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_plain_text_on_one_line(split):
    assert [a for a in answers(split) if MARKDOWN.search(a) or "\n" in a] == []


@pytest.mark.parametrize("text", ["- one", "1. one", "* one", "a\n2) two", "**bold**", "# Title"])
def test_markdown_pattern_catches(text):
    assert MARKDOWN.search(text)

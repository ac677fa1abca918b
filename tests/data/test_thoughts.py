"""Thoughts and answers of whole texts, and of texts that grow."""

import pytest

from gad_jax.data import thoughts

TEXTS = [
    ("plain", "", "plain", True),
    ("  plain \n", "", "  plain \n", True),
    ("", "", "", True),
    ("<div>x</div>", "", "<div>x</div>", True),
    ("<thi", "", "<thi", True),
    ("Use <think> for thoughts</think>.", "", "Use <think> for thoughts</think>.", True),
    ("<think>\n2 + 2\n</think>\n\n4\n", "2 + 2", "4\n", True),
    (" \n<think>a</think>b", "a", "b", True),
    ("<think>\n\n</think>\n\n4", "", "4", True),
    ("<think></think>4", "", "4", True),
    ("<think>a</thin></think>b", "a</thin>", "b", True),
    ("<think>a</think>\n<think>b</think>c", "a\n\nb", "c", True),
    ("<think>cut", "cut", "", False),
    ("<think>cut </th", "cut", "", False),
    ("<think>a</think>", "a", "", True),
    ("<Thinking>a</Thinking>b", "a", "b", True),
    ("<thought>a</thought>b", "a", "b", True),
    ("<reasoning>a</reasoning>\n<answer>\nb\n</answer>\n", "a", "b", True),
    ("<answer>b</answer>", "", "<answer>b</answer>", True),
    ("<seed:think>a</seed:think>b", "a", "b", True),
    ("<mm:think>a</mm:think>b", "a", "b", True),
    ("<longcat_think>a</longcat_think>b", "a", "b", True),
    ("[THINK]a[/THINK]b", "a", "b", True),
    ("◁think▷a◁/think▷b", "a", "b", True),
    ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "a", "b", True),
    ("<|inner_prefix|>a<|inner_suffix|>b", "a", "b", True),
    (
        "<|begin_of_thought|>a<|end_of_thought|>\n\n<|begin_of_solution|>b<|end_of_solution|>",
        *("a", "b", True),
    ),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
        *("a", "b", True),
    ),
    ("<|channel|>final<|message|>b", "", "b", True),
    ("<|channel>thought\na<channel|>b", "a", "b", True),
    ("<unused94>thought\na<unused95>b", "a", "b", True),
]


@pytest.mark.parametrize(("text", "thought", "answer", "finished"), TEXTS)
def test_a_text_in_two_parts(text, thought, answer, finished):
    assert thoughts.split(text) == (thought, answer, finished)
    assert thoughts.split_teacher(text).answer == answer or "</think>." in text


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(("text", "thought", "answer", "finished"), TEXTS)
def test_the_parts_of_a_growing_text_are_those_of_the_whole(text, thought, answer, finished, size):
    splitter = thoughts.Splitter()
    pieces = [splitter.push(text[n : n + size]) for n in range(0, len(text), size)]
    pieces.append(splitter.end())
    assert "".join(piece.thoughts for piece in pieces) == thought
    assert "".join(piece.answer for piece in pieces) == answer
    assert pieces[-1].finished is finished


def test_a_long_thought_is_not_held_back():
    splitter = thoughts.Splitter("<think>")
    assert splitter.push("first words").thoughts == "first words"
    assert splitter.thinking
    assert splitter.push("</think>\n\nYes").answer == "Yes"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("\nso\n</think>\n\nYes", ("so", "Yes", True)),
        ("<think>\nso\n</think>\n\nYes", ("so", "Yes", True)),  # the tag again
        ("\n\n</think>\n\nYes", ("", "Yes", True)),
        ("so far", ("so far", "", False)),
        ("", ("", "", False)),
    ],
)
def test_the_prompt_may_have_opened_the_thought(text, parts):
    assert thoughts.split(text, "<think>") == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("so\n</think>\n\nYes", ("so", "Yes", True)),
        ("so[/THINK]Yes", ("so", "Yes", True)),
        ("so</seed:think>Yes", ("so", "Yes", True)),
        ("Write `</think>` at the end.", ("", "Write `</think>` at the end.", True)),
        ("Here is my thought process: so Here is my response: Yes", ("so", "Yes", True)),
        ("Here is my thought process: one.", ("", "Here is my thought process: one.", True)),
    ],
)
def test_a_teachers_text_may_have_the_closing_tag_alone(text, parts):
    assert thoughts.split_teacher(text) == parts


@pytest.mark.parametrize(
    ("prompt", "tag", "closed", "closing"),
    [
        ("<|im_start|>assistant\n", "", False, ""),
        ("assistant\n<think>\n", "<think>", False, "\n</think>\n\n"),
        ("assistant\n<think>", "<think>", False, "\n\n</think>\n\n"),
        ("assistant\n<think>\n\n</think>\n\n", "", True, ""),
        ("<｜Assistant｜></think>", "", True, ""),
        ("[/INST][THINK]", "[THINK]", False, "[/THINK]"),
        ("<|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>", "", True, ""),
        ("<|channel>thought\n", "<|channel>thought", False, "<channel|>"),
        (
            "<|start|>assistant<|channel|>analysis<|message|>",
            "<|start|>assistant<|channel|>analysis<|message|>",
            False,
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ],
)
def test_how_a_prompt_ends(prompt, tag, closed, closing):
    assert thoughts.open_tag(prompt) == tag
    assert thoughts.ends_closed(prompt) is closed
    if tag:
        assert thoughts.closing_text(prompt) == closing
        assert thoughts.split(f"so{closing}Yes", tag) == ("so", "Yes", True)

"""Prompts that fit, and long ones that are refused before they are encoded."""

from pathlib import Path
from typing import Any

import pytest

from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.serve import prompts
from gad_jax.serve.errors import Refused
from gad_jax.serve.pieces import Pieces
from gad_jax.serve.prompts import Prompts
from gad_jax.serve.wire import ChatRequest, CompletionRequest
from tests.serve import fakes

CONTEXT = 64


@pytest.fixture
def made(tmp_path: Path) -> Prompts:
    write_tiny(tmp_path)
    student = fakes.student(tmp_path, CONTEXT)
    return Prompts(student, Pieces(student.chat.tokenizer))


def chat(text: str, **more: Any) -> ChatRequest:
    messages = [{"role": "user", "content": text}]
    return ChatRequest.model_validate({"model": "m", "messages": messages, **more})


def plain(prompt: Any, **more: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": prompt, **more})


def test_prompts_are_encoded(made: Prompts) -> None:
    found, tokens = made.of_chat(chat("Hi"))
    assert found.tokenizer.decode(tokens.tolist()).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    (tokens,) = made.of_completion(plain("a<|im_end|>"))  # the client writes the whole prompt
    assert tokens.tolist() == [97, 258]
    assert [one.tolist() for one in made.of_completion(plain([[1], [2, 3]]))] == [[1], [2, 3]]
    assert made.echoed(plain([[97, 0xC3, 0xA9], [98]], n=2, echo=True)) == ["aé", "aé", "b", "b"]
    assert made.echoed(plain(["x"])) == []


def test_a_long_text_is_refused_before_it_is_encoded(
    made: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    count = made.student.count_text

    def count_text(text: str) -> int:
        counted.append(len(text))
        return count(text)

    def encode(*_: Any) -> None:
        pytest.fail("a long text was encoded")

    monkeypatch.setattr(prompts, "SAMPLED_PER_TOKEN", 8)
    vars(made.student).update(count_text=count_text, encode=encode, encode_text=encode)
    for text in ("x" * 700, "é" * 350, "<|im_end|>" * 70, "x" * 10**6):
        for ask, asked in ((made.of_chat, chat(text)), (made.of_completion, plain(text))):
            with pytest.raises(Refused, match="more than 64 tokens, and 64 are for it") as caught:
                ask(asked)  # pyright: ignore
            assert caught.value.code == "context_length_exceeded"
            assert caught.value.param in ("messages", "prompt")
    assert counted == [512, 512, 350, 350, 512, 512]  # no vocabulary holds the last text


@pytest.mark.parametrize(("tokens", "advice"), [(60, " or ask for a shorter answer"), (64, "")])
def test_a_prompt_that_fits_alone_may_have_a_shorter_answer(
    made: Prompts, tokens: int, advice: str
) -> None:
    with pytest.raises(Refused) as caught:
        made.of_completion(plain([[1] * tokens], max_tokens=9))
    said = f"the prompt has {tokens} tokens, and 64 are for it and its answer of 9; shorten it"
    assert caught.value.message == said + advice


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "the prompt is empty"),
        ([[]], "the prompt is empty"),
        ([512], "token 512 is not in the vocabulary of 512"),
        ([-1], "token -1 is not"),
        ([10**400], "token 10000000000000000000 is"),
        ("x" * CONTEXT, f"has {CONTEXT} tokens"),
        ([1] * (CONTEXT - 1), "its answer of 2"),
    ],
)
def test_what_is_no_prompt(made: Prompts, prompt: Any, says: str) -> None:
    with pytest.raises(Refused, match=says) as caught:
        made.of_completion(plain(prompt, max_tokens=2))
    assert caught.value.param == "prompt"


def test_mistakes_of_a_conversation_name_their_field(made: Prompts) -> None:
    for more, param in (
        ({"messages": [{"role": "robot", "content": ""}]}, "messages"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"unread": 1}}, "chat_template_kwargs"),
    ):
        with pytest.raises(Refused) as caught:
            made.of_chat(chat("Hi", **more))
        assert (caught.value.status, caught.value.param) == (400, param)

"""The shapes of responses."""

import pytest

from gad_jax.data.chat import Chat
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.serve import forms
from gad_jax.serve.forms import ChatForm, Chunk, CompletionForm
from gad_jax.serve.pieces import Pieces


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny(directory)
    return Pieces(Chat.load(directory, "none").tokenizer)


def drawn(text: str) -> tuple[forms.Drawn, ...]:
    return tuple((byte, -0.5) for byte in text.encode())  # a token is a byte


def test_a_message_of_thoughts_alone_has_no_content() -> None:
    assert forms.message("Yes", "") == {"role": "assistant", "content": "Yes"}
    assert forms.message("", "") == {"role": "assistant", "content": ""}
    assert forms.message("", "so")["content"] is None
    chunks = [Chunk(0, "", "so"), Chunk(0, "Yes"), Chunk(0, tokens=3, reason="stop")]
    whole = ChatForm(None).whole(chunks)
    assert whole["message"] == forms.message("Yes", "so")
    assert (whole["logprobs"], whole["finish_reason"]) == (None, "stop")
    assert ChatForm(None).part(chunks[0])["delta"] == {"reasoning_content": "so"}


def test_log_probs_of_a_chat_have_the_bytes(pieces: Pieces) -> None:
    form = ChatForm(pieces)
    content = form.whole([Chunk(0, "é a", drawn=drawn("é a"), reason="stop")])["logprobs"][
        "content"
    ]
    assert [one["bytes"] for one in content] == [[0xC3], [0xA9], [32], [97]]
    assert [one["token"] for one in content] == ["\\xc3", "\\xa9", " ", "a"]
    assert form.part(Chunk(0, "a", drawn=drawn("a")))["logprobs"]["content"] == content[3:]


def test_log_probs_of_a_completion_have_offsets(pieces: Pieces) -> None:
    expected = {
        "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9", "b"],
        "token_logprobs": [-0.5] * 4,
        "top_logprobs": None,
        "text_offset": [0, 1, 1, 2],
    }
    chunk = Chunk(1, "aéb", drawn=drawn("aéb"), reason="length")
    whole = CompletionForm(pieces, ()).whole([chunk])
    assert whole == {"index": 1, "text": "aéb", "logprobs": expected, "finish_reason": "length"}
    form = CompletionForm(pieces, ())
    parts = [form.part(Chunk(1, drawn=(one,)))["logprobs"] for one in chunk.drawn]
    assert [part["text_offset"] for part in parts] == [[0], [1], [1], [2]]


def test_bytes_that_are_no_text_are_a_character_of_the_offsets(pieces: Pieces) -> None:
    content = b"a\xc3b\xff\xc3\xa9c"
    assert content.decode("utf-8", "replace") == "a\ufffdb\ufffdéc"
    bytewise = Chunk(
        0, "a\ufffdb\ufffdéc", drawn=tuple((byte, 0.0) for byte in content), reason="stop"
    )
    found = CompletionForm(pieces, ()).whole([bytewise])["logprobs"]["text_offset"]
    assert found == [0, 1, 2, 3, 4, 4, 5]


def test_a_prompt_is_echoed_once() -> None:
    form = CompletionForm(None, ["Go", "Stay"])
    assert form.whole([Chunk(1, " on", reason="stop")])["text"] == "Stay on"
    assert form.opening(0) == {"index": 0, "text": "Go", "logprobs": None, "finish_reason": None}
    assert form.part(Chunk(0, " on"))["text"] == " on"
    assert CompletionForm(None, ()).opening(0) is None

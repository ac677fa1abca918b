"""Text from a stream of tokens."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from gad_jax.data.chat import Chat
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.serve.text import TextStream

TEXT = "Grüße, 안녕 \N{GRINNING FACE}! The end."


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny(directory)
    return Chat.load(directory, "none")


def pieces(chat: Chat, text: str, *stops: str) -> list[str]:
    stream = TextStream(chat, stops)
    tokens = chat.encode_response(text, complete=False)
    return [*(stream.push(token) for token in tokens), stream.end()]


def test_characters_come_whole(chat: Chat) -> None:
    found = pieces(chat, TEXT)
    assert "".join(found) == TEXT
    assert len(found) > len(TEXT)  # a token is a byte
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("! T",), TEXT[: TEXT.index("!")]),
        (("end", "The"), TEXT[: TEXT.index("The")]),
        (("\N{GRINNING FACE}!",), TEXT[: TEXT.index("\N{GRINNING FACE}")]),
        (("The end?", "end.."), TEXT),
        (("G",), ""),
    ],
)
def test_nothing_of_a_stop_string_is_shown(
    chat: Chat, stops: tuple[str, ...], expected: str
) -> None:
    shown = ""
    for piece in pieces(chat, TEXT, *stops):
        shown += piece
        assert expected.startswith(shown)
    assert shown == expected


def test_bytes_that_are_no_text_end_nothing(chat: Chat, tmp_path: Path) -> None:
    ids = {byte: chat.encode_response(chr(byte), complete=False)[-1] for byte in (65, 66)}
    broken = chat.encode_response("ü", complete=False)[0]  # the first half of a character
    stream = TextStream(chat)
    shown = "".join(stream.push(t) for t in [ids[65], broken, broken, ids[66], broken, ids[65]])
    assert (shown + stream.end()).replace("\N{REPLACEMENT CHARACTER}", "") == "ABA"


def test_tags_of_thoughts_and_the_templates_blanks(tmp_path: Path) -> None:
    """The text is that of `Chat.decode`, in pieces."""
    write_tiny(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for number, tag in ((300, "[THINK]"), (301, "[/THINK]")):
        tokenizer["added_tokens"].append({"id": number, "content": tag, "special": True} | flags)
    path.write_text(json.dumps(tokenizer))
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]"
        "{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    chat = Chat.load(tmp_path, "none")
    for text in ("Yes.", "[THINK]so[/THINK]Yes.", "  ", ""):
        tokens = chat.encode_response(text)
        assert tokens[-1] == chat.end_token
        stream = TextStream(chat)
        found = [*(stream.push(token) for token in tokens[:-1]), stream.end(finished=True)]
        assert "".join(found) == chat.decode(tokens)
    assert chat.decode(chat.encode_response("Yes.")) == "Yes."
    assert chat.reply(chat.encode_response("[THINK]so[/THINK]Yes.")) == ("so", "Yes.", True)
    cut = TextStream(chat)
    tokens = chat.encode_response("Yes.", complete=False)
    assert "".join([*map(cut.push, tokens), cut.end(finished=False)]) == "Yes."


def test_a_plain_prompt_is_continued_with_its_blank(tmp_path: Path) -> None:
    """SentencePiece takes the blank from the beginning of a text, which is none here."""
    write_tiny(tmp_path)
    words = {"<unk>": 0, "▁Hello": 1, "▁world": 2, "!": 3}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    chat = Chat.load(tmp_path, "none")
    spaced = dataclasses.replace(
        chat, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    )
    for after, expected in (([1], " world!"), ([], "world!")):
        stream = TextStream(spaced, after=after)
        assert "".join(stream.push(token) for token in (2, 3)) + stream.end() == expected


def test_any_tokens_can_follow_any_prompt(chat: Chat) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        prompt, tokens = random.integers(0, 300, (2, 12)).tolist()
        stream = TextStream(chat, ("never said",), after=prompt)
        text = "".join([*map(stream.push, tokens), stream.end()])
        plain = bytes(token for token in tokens if token < 256).decode("ascii", "ignore")
        assert [c for c in text if c.isascii()] == [*plain]

"""The bytes of tokens: byte-level, SentencePiece with and without byte fallback, and others."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from gad_jax.data.chat import Chat
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.serve import forms, pieces
from gad_jax.serve.pieces import Pieces

SENTENCEPIECE = {
    "fallback": [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ],
    "metaspace": [decoders.Metaspace()],
}


def vocabulary(tokenizer: Tokenizer) -> Pieces:
    return Pieces(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_byte_level_tokens_are_their_bytes(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    chat = Chat.load(tmp_path, "none")
    found = Pieces(chat.tokenizer)
    assert [found.bytes_of(token) for token in range(256)] == [bytes([n]) for n in range(256)]
    assert found.bytes_of(258) == b"<|im_end|>"
    assert found.bytes_of(400) == b""  # of the padded vocabulary
    assert found.longest == len("<|endoftext|>")
    (first, *_) = chat.encode_response("é", complete=False)
    assert forms.logprob(found, first, -0.5) == {
        "token": "\\xc3",
        "logprob": -0.5,
        "bytes": [0xC3],
        "top_logprobs": [],
    }


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_sentencepiece_keeps_blanks_and_bytes(kind: str) -> None:
    words = ["<unk>", "▁the", "the", "▁", "▁▁", "<0xE4>", "<0x0A>", "é"]
    tokenizer = Tokenizer(
        models.BPE({word: n for n, word in enumerate(words)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(SENTENCEPIECE[kind])
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    found = vocabulary(tokenizer)
    bytes_ = [found.bytes_of(token) for token in range(9)]
    assert bytes_[1:5] == [b" the", b"the", b" ", b"  "]
    assert bytes_[7:] == ["é".encode(), b"<s>"]
    if kind == "fallback":
        assert bytes_[5:7] == [b"\xe4", b"\n"]
        assert pieces.as_text(bytes_[5]) == "\\xe4"
    assert found.longest == len("<0xE4>" if kind == "metaspace" else "<unk>")


def test_of_other_kinds_the_decoded_text_is_taken() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    found = vocabulary(tokenizer)
    assert found.bytes_of(1) == b"play"
    assert json.loads(tokenizer.to_str())["decoder"]["type"] == "WordPiece"

"""The bytes of each token, as the vocabulary has them.

Decoded alone, a token may lose its leading blank, or be half a character.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """The vocabulary of a fast tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._added = {token: entry.content for token, entry in added.items()}
        decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder")
        self._of_piece = _reader(decoder)

    def bytes_of(self, token: int) -> bytes:
        """Returns the bytes that a token stands for; none for an id without a text."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return b"" if piece is None else self._bytes(token, piece)

    def _bytes(self, token: int, piece: str) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        if self._of_piece is not None:
            return self._of_piece(piece)
        return self._tokenizer.decode([token]).encode()

    @functools.cached_property
    def longest(self) -> int:
        """The most bytes of a token."""
        vocabulary = self._tokenizer.get_vocab()
        return max(len(self._bytes(token, piece)) for piece, token in vocabulary.items())


def as_text(content: bytes) -> str:
    r"""Returns the text of a token; bytes of half a character as OpenAI writes them: "\xe4"."""
    return content.decode("utf-8", "backslashreplace")


def _reader(decoder: Any) -> Callable[[str], bytes] | None:
    """Returns the function from a piece to its bytes; None if the decoder is of another kind."""
    steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder]
    kinds = {step["type"] for step in steps if step}
    if "ByteLevel" in kinds:
        return _from_byte_level
    if not kinds or not kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return None
    replaced = [
        (step["pattern"]["String"], step["content"])
        for step in steps
        if step["type"] == "Replace" and "String" in step["pattern"]
    ]
    replaced += [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
    return functools.partial(_from_sentencepiece, replaced, "ByteFallback" in kinds)


def _from_sentencepiece(replaced: Sequence[tuple[str, str]], fallback: bool, piece: str) -> bytes:
    found = _BYTE.fullmatch(piece) if fallback else None
    if found:
        return bytes([int(found[1], 16)])
    for old, new in replaced:
        piece = piece.replace(old, new)
    return piece.encode()


def _from_byte_level(piece: str) -> bytes:
    table = _byte_characters()
    if all(character in table for character in piece):
        return bytes(table[character] for character in piece)
    return piece.encode()  # as the decoder has it


@functools.cache
def _byte_characters() -> dict[str, int]:
    """Returns the byte of each character of a byte-level vocabulary, as GPT-2 defined them.

    Printable bytes are themselves; the others have the characters from 256 on, in their order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}

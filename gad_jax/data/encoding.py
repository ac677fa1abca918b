"""Text to ids and back with one tokenizer, where a text may spell control tokens.

What a conversation becomes is decided in `chat.py`.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gad_jax.data import thoughts
from gad_jax.data.tokenizer import Control

Form = Literal["plain", "after newline"]
"""How a text is encoded that continues another one.

SentencePiece puts a space before a text, which it must not do after a newline."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """A tokenizer and the control tokens that no text may turn into."""

    tokenizer: Any
    controls: Mapping[str, Control]

    def encode(self, texts: Sequence[str], literally: bool = False) -> list[list[int]]:
        """Returns the tokens of each text; `literally` takes control strings as ordinary text."""
        if not texts:
            return []
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,  # the template writes them all, BOS too
            split_special_tokens=literally,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def continuation(self, texts: Sequence[str], form: Form = "plain") -> list[list[int]]:
        """Returns the tokens of texts that follow others, control strings as ordinary text."""
        if form == "plain":
            return self.encode(texts, literally=True)
        newline, *whole = self.encode(["\n", *(f"\n{text}" for text in texts)], literally=True)
        if all(tokens[: len(newline)] == newline for tokens in whole):
            return [tokens[len(newline) :] for tokens in whole]
        return self.encode(texts, literally=True)

    def added(self, text: str, more: str) -> list[int] | None:
        """Returns the tokens that `more` adds to a text of the template; None if it changes those
        before it."""
        before, whole = self.encode([text, text + more])
        return whole[len(before) :] if whole[: len(before)] == before else None

    def decode(self, tokens: Sequence[int], form: Form = "plain") -> str:
        """Returns the text of tokens without control tokens, but with the tags of thoughts."""
        if form == "after newline":
            newline = self._plain_text(self.encode(["\n"], literally=True)[0])
            whole = self.decode([*self.encode(["\n"], literally=True)[0], *tokens])
            if newline == "\n" and whole.startswith("\n"):
                return whole[1:]
        parts, start = [], 0
        for place, token in enumerate(tokens):
            if token in self.tags:
                parts += [self._plain_text(tokens[start:place]), self.tags[token]]
                start = place + 1
        return "".join([*parts, self._plain_text(tokens[start:])])

    def _plain_text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    @functools.cached_property
    def tags(self) -> dict[int, str]:
        """The control tokens that mark thoughts, which decoding would leave out."""
        return {
            control.token: text
            for text, control in self.controls.items()
            if thoughts.SPECIAL.fullmatch(text)
        }

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds the control strings of a text."""
        longest_first = sorted(self.controls, key=len, reverse=True)
        spellings = "|".join(map(re.escape, longest_first)) or "(?!)"  # which never matches
        return re.compile(f"({spellings})")

    def with_literals(self, text: str, literals: dict[str, str]) -> list[int]:
        """Returns the tokens of a rendered prompt whose marks stand for spelled control strings."""
        whole = self.encode([text])[0]
        for form in ("plain", "after newline"):

            def encode(piece: str, form: Form = form) -> list[int]:
                return self.continuation([piece], form)[0]

            if self._pieces(text, {}, encode) == whole:
                return self._pieces(text, literals, encode)
        return self._pieces(text, literals, lambda piece: self.continuation([piece])[0])

    def _pieces(
        self, text: str, literals: dict[str, str], encode: Callable[[str], list[int]]
    ) -> list[int]:
        """Returns the tokens of a text cut at its control tokens, with the marks resolved."""
        pieces = self.pattern.split(text)  # text, control, text, …, control, text
        for place in range(1, len(pieces), 2):
            control = self.controls[pieces[place]]
            if control.lstrip:
                pieces[place - 1] = pieces[place - 1].rstrip()
            if control.rstrip:
                pieces[place + 1] = pieces[place + 1].lstrip()
        # One pass: a text may spell thousands of control tokens in thousands of pieces.
        marks = re.compile("|".join(map(re.escape, literals)) or "(?!)")
        tokens: list[int] = []
        for place, piece in enumerate(pieces):
            if place % 2:
                tokens.append(self.controls[piece].token)
            elif piece:
                tokens += encode(marks.sub(lambda mark: literals[mark[0]], piece))
        return tokens

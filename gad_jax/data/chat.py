"""Text to the student's tokens and back: instruction wrapper, chat template, end token.

Teacher and student responses meet in the discriminator, so one text must have one sequence of
tokens, the end token included. Reading rows is in `sources`; what a model's files say about its
tokens is read in `tokenizer.py`.
"""

import functools
import hashlib
import json
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsIndex

from gad_jax.base.errors import UserError
from gad_jax.data.tokenizer import (
    Control,
    Message,
    check_template,
    control_tokens,
    find_end_token,
    load_tokenizer,
    make_special,
    read_chat_template,
    read_end_tokens,
    render,
)

Template = Literal["alpaca", "none"]

ROLES = ("system", "user", "assistant")

WRAPPERS = {
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    ),
    "none": "{instruction}",
}


Conversation = Sequence[Message]


@dataclass(frozen=True, eq=False)
class Chat:
    """A student's tokenizer and chat template; made by `Chat.load`.

    Sampling stops at any of `end_tokens`. `end_token`, one of them, is the one that the template
    writes after an assistant turn: complete teacher responses end with it, and so do the student's
    when it follows its template. `pad_token` may equal an end token: masks come from lengths,
    never from the pad token. `controls` are the tokens that no text may turn into.
    """

    directory: str
    tokenizer: Any
    template: Template
    chat_template: str
    end_tokens: tuple[int, ...]
    end_token: int
    pad_token: int
    controls: dict[str, Control]

    @classmethod
    def load(cls, directory: str | Path, template: Template = "alpaca") -> "Chat":
        """Returns the chat of a Hugging Face directory; reads local files and runs no code of it.

        Raises UserError when the directory has no usable tokenizer or chat template, or when the
        template loses the user's text or does not open the assistant's turn.
        """
        tokenizer = load_tokenizer(directory)
        chat_template = read_chat_template(directory, tokenizer)
        render_probe = functools.partial(render, directory, tokenizer, chat_template)
        check_template(directory, render_probe)
        end_tokens = read_end_tokens(directory, tokenizer)
        end_token = find_end_token(directory, tokenizer, render_probe, end_tokens)
        end_tokens = tuple(dict.fromkeys([*end_tokens, end_token]))
        make_special(directory, tokenizer, end_tokens)
        pad_token = tokenizer.pad_token_id
        return cls(
            directory=str(directory),
            tokenizer=tokenizer,
            template=template,
            chat_template=chat_template,
            end_tokens=end_tokens,
            end_token=end_token,
            pad_token=end_token if pad_token is None else pad_token,
            controls=control_tokens(tokenizer),
        )

    @property
    def vocab_size(self) -> int:
        """The rows that an embedding needs for this tokenizer; a model may have more (padding)."""
        return 1 + max(self.tokenizer.get_vocab().values())

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 of what decides how text becomes tokens, stable across library versions."""
        probe = "Hello, world!\n\n  def f(x1):\treturn 3.14 # Grüße, 안녕, \N{GRINNING FACE}"
        content = {
            "vocabulary": sorted(self.tokenizer.get_vocab().items()),
            "chat_template": self.chat_template,
            "wrapper": WRAPPERS[self.template],
            "end_tokens": [self.end_token, *self.end_tokens],
            "probe": self.encode_response(probe),
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the tokens of a conversation up to where the assistant's answer begins.

        The last message is the user's; the wrapper goes around its content alone. Control tokens
        spelled out in a message stay text. Raises UserError for text that cannot be encoded and
        for conversations that the template refuses.

            chat.encode_prompt([{"role": "user", "content": "Name a fruit."}])
        """
        return self.encode_prompts([messages])[0]

    def encode_prompts(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Returns `encode_prompt` of each conversation; faster than one by one."""
        rendered = [self._render_prompt(messages) for messages in conversations]
        encoded = iter(self._encode([text for text, literals in rendered if not literals]))
        return [
            self._encode_with_literals(text, literals) if literals else next(encoded)
            for text, literals in rendered
        ]

    def encode_response(self, text: str, complete: bool = True) -> list[int]:
        """Returns the tokens of a response, followed by `end_token` when it is complete."""
        return self.encode_responses([text], complete)[0]

    def encode_responses(self, texts: Sequence[str], complete: bool = True) -> list[list[int]]:
        """Returns `encode_response` of each text; faster than one by one."""
        for text in texts:
            _refuse_surrogates(text)
        end = [self.end_token] if complete else []
        return [tokens + end for tokens in self._encode(texts, literally=True)]

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """Returns the text of a response, without end tokens and other control tokens.

        A response cut inside a character (byte-level tokens) loses the broken character.
        """
        ids = [operator.index(token) for token in tokens]
        ends = {*self.end_tokens, self.pad_token}
        text = self.tokenizer.decode(
            [token for token in ids if token not in ends],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return text if ids and ids[-1] in ends else text.rstrip("\N{REPLACEMENT CHARACTER}")

    def _render(self, messages: Sequence[Message]) -> str:
        return render(self.directory, self.tokenizer, self.chat_template, messages, True)

    def _render_prompt(self, messages: Sequence[Message]) -> tuple[str, dict[str, str]]:
        """Returns the rendered prompt and, mark by mark, the control strings its messages spell.

        Marks stand for such strings inside the messages, so that those left are the template's.
        """
        messages = self._wrap(messages)
        contents = "".join(message["content"] for message in messages)
        _refuse_surrogates(contents)
        spelled = sorted(set(self._control_pattern.findall(contents)))
        if not spelled:
            return self._render(messages), {}
        name = hashlib.sha256(contents.encode()).hexdigest()[:16]
        marks = {text: f"\uf8ff{name}.{number}\uf8ff" for number, text in enumerate(spelled)}
        hide = functools.partial(self._control_pattern.sub, lambda match: marks[match[0]])
        hidden = [{**message, "content": hide(message["content"])} for message in messages]
        return self._render(hidden), {mark: text for text, mark in marks.items()}

    def _wrap(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Returns the conversation with the wrapper around the last message's content."""
        for message in messages:
            if message["role"] not in ROLES:
                raise UserError(f"role {message['role']!r} is unknown; use {', '.join(ROLES)}")
        if not messages or messages[-1]["role"] != "user":
            raise UserError("a prompt must end with a user message; drop what follows the last one")
        *earlier, last = (dict(message) for message in messages)
        last["content"] = WRAPPERS[self.template].replace("{instruction}", last["content"])
        return [*earlier, last]

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.controls, key=len, reverse=True)
        spellings = "|".join(map(re.escape, longest_first)) or "(?!)"  # which never matches
        return re.compile(f"({spellings})")

    def _encode(self, texts: Sequence[str], literally: bool = False) -> list[list[int]]:
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

    def _encode_with_literals(self, text: str, literals: dict[str, str]) -> list[int]:
        """Returns the tokens of a rendered prompt whose marks stand for spelled control strings."""

        def plain(piece: str) -> list[int]:
            return self._encode([piece], literally=True)[0]

        def after_newline(piece: str) -> list[int]:
            """Hides from SentencePiece that a text starts here; it would put a space before it."""
            newline, tokens = self._encode(["\n", "\n" + piece], literally=True)
            starts = tokens[: len(newline)] == newline
            return tokens[len(newline) :] if starts else plain(piece)

        whole = self._encode([text])[0]
        for encode in (plain, after_newline):
            if self._encode_pieces(text, {}, encode) == whole:
                return self._encode_pieces(text, literals, encode)
        return self._encode_pieces(text, literals, plain)

    def _encode_pieces(
        self, text: str, literals: dict[str, str], encode: Callable[[str], list[int]]
    ) -> list[int]:
        """Returns the tokens of a text cut at its control tokens, with the marks resolved."""
        pieces = self._control_pattern.split(text)  # text, control, text, …, control, text
        for place in range(1, len(pieces), 2):
            control = self.controls[pieces[place]]
            if control.lstrip:
                pieces[place - 1] = pieces[place - 1].rstrip()
            if control.rstrip:
                pieces[place + 1] = pieces[place + 1].lstrip()
        tokens: list[int] = []
        for place, piece in enumerate(pieces):
            if place % 2:
                tokens.append(self.controls[piece].token)
            elif piece:
                for mark, literal in literals.items():
                    piece = piece.replace(mark, literal)
                tokens += encode(piece)
        return tokens


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}), which no tokenizer "
            "can encode; remove it"
        ) from None

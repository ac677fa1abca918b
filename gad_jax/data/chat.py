"""Text to the student's tokens and back: instruction wrapper, chat template, end token.

Teacher and student responses meet in the discriminator, so one text must have one sequence of
tokens, the end token included. Reading rows is in `sources`; what a model's files say about its
tokens is read in `tokenizer.py`.
"""

import functools
import hashlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsIndex

from gad_jax.base.errors import UserError
from gad_jax.data import framing, thoughts, turns
from gad_jax.data import template as templates
from gad_jax.data.encoding import Encoder
from gad_jax.data.framing import Framing
from gad_jax.data.template import Message
from gad_jax.data.thoughts import Parts
from gad_jax.data.tokenizer import (
    Control,
    control_tokens,
    find_end_token,
    load_tokenizer,
    make_special,
    read_chat_template,
    read_end_tokens,
)
from gad_jax.data.turns import Turn

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
    never from the pad token. `turn` is what the template writes around an answer. With
    `close_thoughts`, a prompt that ends in an open thought is closed: the student only answers.
    """

    directory: str
    tokenizer: Any
    template: Template
    jinja: templates.Template
    turn: Turn
    close_thoughts: bool
    end_tokens: tuple[int, ...]
    end_token: int
    pad_token: int
    encoder: Encoder

    @classmethod
    def load(
        cls,
        directory: str | Path,
        template: Template = "alpaca",
        arguments: Mapping[str, Any] | None = None,
        close_thoughts: bool = False,
    ) -> "Chat":
        """Returns the chat of a Hugging Face directory; reads local files and runs no code of it.

        `arguments` are those of the chat template, as `{"enable_thinking": False}`. Raises
        UserError when the directory has no usable tokenizer or chat template, when the template
        never reads an argument, and when it loses the user's text or does not open the assistant's
        turn.
        """
        tokenizer = load_tokenizer(directory)
        source = read_chat_template(directory, tokenizer)
        jinja = templates.Template(directory, source, tokenizer.special_tokens_map, arguments)
        return cls._of(tokenizer, template, jinja, close_thoughts)

    @classmethod
    def _of(
        cls, tokenizer: Any, template: Template, jinja: templates.Template, close_thoughts: bool
    ) -> "Chat":
        turn = turns.probe(jinja)
        if close_thoughts:
            turn = turns.with_empty_thought(turn, jinja)
        end_tokens = read_end_tokens(jinja.directory, tokenizer)
        end_token = find_end_token(jinja, tokenizer, end_tokens)
        end_tokens = tuple(dict.fromkeys([*end_tokens, end_token]))
        make_special(jinja.directory, tokenizer, end_tokens)
        pad_token = tokenizer.pad_token_id
        return cls(
            directory=jinja.directory,
            tokenizer=tokenizer,
            template=template,
            jinja=jinja,
            turn=turn,
            close_thoughts=close_thoughts,
            end_tokens=end_tokens,
            end_token=end_token,
            pad_token=end_token if pad_token is None else pad_token,
            encoder=Encoder(tokenizer, control_tokens(tokenizer)),
        )

    def with_arguments(self, arguments: Mapping[str, Any]) -> "Chat":
        """Returns the chat with these arguments over its own, for a thought as the template has it.

        Raises UserError for an argument that the template never reads.
        """
        jinja = self.jinja.with_arguments(self.jinja.arguments | dict(arguments))
        return Chat._of(self.tokenizer, self.template, jinja, close_thoughts=False)

    @property
    def controls(self) -> Mapping[str, Control]:
        """The tokens that no text may turn into, by their spelling."""
        return self.encoder.controls

    @property
    def opens_thought(self) -> str:
        """The tag of the thought that the answer begins in; empty if it begins in none."""
        return "" if self.close_thoughts else self.turn.opens

    @property
    def shown_lead(self) -> str:
        """What a response's text begins with where the template writes more than the answer."""
        return "" if self.opens_thought else self._framing.shown

    @property
    def shown_tail(self) -> str:
        """The blanks that the template writes between an answer and the end token."""
        return self._framing.tail

    @property
    def stored_template(self) -> str:
        """The chat template as an export has it: its text gives these prompts without arguments."""
        return self.jinja.stored(self.turn.closing if self.close_thoughts else "")

    def check_answers_only(self) -> str:
        """Returns what a run should say of the template's thoughts; empty if there are none.

        For a run that trains on answers without thoughts. Raises UserError where the student would
        think before it answers, and an argument of the template says that it is not to.
        """
        if not self.turn.closed:
            found = turns.closing_argument(self.jinja)
            if found is not None:
                name, value = found
                raise UserError(
                    f"{self.directory}: the chat template lets the student think before it "
                    "answers, and the teacher's answers are trained without thoughts; pass "
                    f"--data.chat_template_kwargs={name}={value}, or --data.thoughts=keep if the "
                    "teacher's text has thoughts"
                )
        if self.turn.opens:
            return (
                f"the chat template's prompt ends in an open thought ({self.turn.opens}); it is "
                f"closed with {self.turn.closing!r}, so that answers stand outside of it"
            )
        if self.turn.closing:
            return (
                f"the chat template writes an empty thought before an answer; prompts end in it "
                f"({self.turn.closing!r}), so that the student only answers"
            )
        return ""

    def check_vocabulary(self, vocabulary: int, name: str = "") -> None:
        """Raises UserError where a text could become a token that the network does not have.

        A special token that neither ends a response nor stands in the template is never used, so
        it may be beyond the network: Gemma 3's image token is.
        """
        used = {*self.end_tokens, self.pad_token}
        harmless = {
            control.token
            for text, control in self.controls.items()
            if control.token not in used and text not in self.jinja.source
        }
        known = {*self.tokenizer.get_vocab().values(), *used} - harmless
        if max(known) >= vocabulary:
            raise UserError(
                f"{name or self.directory}: the tokenizer knows {1 + max(known)} tokens and the "
                f"network {vocabulary}; use the tokenizer that belongs to the weights"
            )

    @property
    def vocab_size(self) -> int:
        """The rows that an embedding needs for this tokenizer; a model may have more (padding)."""
        return 1 + max(self.tokenizer.get_vocab().values())

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 of what decides how text becomes tokens, stable across library versions."""
        probe = "Hello, world!\n\n  def f(x1):\treturn 3.14 # Grüße, 안녕, \N{GRINNING FACE}"
        content: dict[str, Any] = {
            "vocabulary": sorted(self.tokenizer.get_vocab().items()),
            "chat_template": self.jinja.digested,
            "wrapper": WRAPPERS[self.template],
            "end_tokens": [self.end_token, *self.end_tokens],
            "probe": self.encode_response(probe),
        }
        if self.jinja.arguments:
            content["arguments"] = self.jinja.arguments
        if self.turn.strips:
            content["strips"] = self.turn.strips
        if self.turn.closing and self.close_thoughts:
            content["closing"] = self.turn.closing
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
        plain = [text for text, literals in rendered if not literals]
        encoded = iter(self.encoder.encode(plain))
        return [
            self.encoder.with_literals(text, literals) if literals else next(encoded)
            for text, literals in rendered
        ]

    def encode_response(self, text: str, complete: bool = True) -> list[int]:
        """Returns the tokens of a response, followed by `end_token` when it is complete.

        They are those that the chat template's own text of an answered turn has after the prompt.
        Unless `close_thoughts`, thoughts at the beginning of the text become the model's own, and a
        thought that the prompt has opened is closed before an answer without thoughts.
        """
        return self.encode_responses([text], complete)[0]

    def encode_responses(self, texts: Sequence[str], complete: bool = True) -> list[list[int]]:
        """Returns `encode_response` of each text; faster than one by one."""
        for text in texts:
            _refuse_surrogates(text)
        frame = self._framing
        tail, end = (frame.tail, [self.end_token]) if complete else ("", [])
        answers, leads = [], []
        for text in texts:
            parts = Parts("", text) if self.close_thoughts else thoughts.split_teacher(text)
            answer = self.turn.strip(parts.answer if parts.finished else text)
            answers.append(frame.lead_text + answer + tail)
            thinks = parts.finished and parts.thoughts != ""
            leads.append(self._thoughts(parts.thoughts) if thinks else frame.lead)
        encoded = self.encoder.continuation(answers, frame.form)
        return [lead + tokens + end for lead, tokens in zip(leads, encoded, strict=True)]

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """Returns the text of a response, without end tokens and other control tokens.

        Thoughts are in it, with their tags; `reply` parts them. A response cut inside a character
        (byte-level tokens) loses the broken character.
        """
        ids = [operator.index(token) for token in tokens]
        ends = {*self.end_tokens, self.pad_token}
        body = [token for token in ids if token not in ends]
        text = self.encoder.decode(body, self._framing.form)
        text = text.removeprefix(self.shown_lead)
        if ids and ids[-1] in ends:
            return text.removesuffix(self.shown_tail)
        return text.rstrip("\N{REPLACEMENT CHARACTER}")

    def reply(self, tokens: Iterable[SupportsIndex]) -> Parts:
        """Returns the thoughts and the answer of a response; cut inside a thought, it has none."""
        return self.parts(self.decode(tokens))

    def parts(self, response: str) -> Parts:
        """Returns what `reply` does for a response that is decoded."""
        return thoughts.split(response, self.opens_thought)

    @functools.cached_property
    def _framing(self) -> Framing:
        """How answers become tokens; found at the first one."""
        prompt = self.jinja.render([turns.QUESTION], True)
        end = self.tokenizer.convert_ids_to_tokens(self.end_token)
        return framing.find(self.encoder, prompt, self.turn, end, self.close_thoughts)

    def _thoughts(self, text: str) -> list[int]:
        """Returns the tokens of a teacher's thoughts, between the tags of the template."""
        opening, close = thoughts.frame(self.turn.opens, self.jinja.source)
        before, after = self.encoder.encode(["" if self.turn.opens else opening, close])
        return before + self.encoder.continuation([text])[0] + after

    def _render(self, messages: Sequence[Message]) -> str:
        closing = self.turn.closing if self.close_thoughts else ""
        return self.jinja.render(messages, True) + closing

    def _render_prompt(self, messages: Sequence[Message]) -> tuple[str, dict[str, str]]:
        """Returns the rendered prompt and, mark by mark, the control strings its messages spell.

        Marks stand for such strings inside the messages, so that those left are the template's.
        """
        messages = self._wrap(messages)
        contents = "".join(message["content"] for message in messages)
        _refuse_surrogates(contents)
        spelled = sorted(set(self.encoder.pattern.findall(contents)))
        if not spelled:
            return self._render(messages), {}
        name = hashlib.sha256(contents.encode()).hexdigest()[:16]
        marks = {text: f"\uf8ff{name}.{number}\uf8ff" for number, text in enumerate(spelled)}
        hide = functools.partial(self.encoder.pattern.sub, lambda match: marks[match[0]])
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


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}), which no tokenizer "
            "can encode; remove it"
        ) from None

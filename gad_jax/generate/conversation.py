"""A conversation at a prompt line: answers appear as they are sampled."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from gad_jax.base.console import Note
from gad_jax.base.errors import UserError, sentence
from gad_jax.base.redaction import printable
from gad_jax.data import thoughts
from gad_jax.data.chat import Chat
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.rollout import prefill
from gad_jax.rollout.sampling import Sampler
from gad_jax.rollout.streaming import Streamer
from gad_jax.settings.decoding import Decoding
from gad_jax.training import loading

if TYPE_CHECKING:
    from gad_jax.generate.__main__ import Generate

MOST_CONTEXT = 8192
"""Tokens of a conversation, where the model allows more: the cache of its prompt is allocated."""

HELP = "/new starts another conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer."


class GrowingText:
    """The text of an answer as its tokens come: whole characters, thoughts apart."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._splitter = thoughts.Splitter(chat.opens_thought)
        self._tokens: list[int] = []
        self._known = ""

    def push(self, token: int) -> thoughts.Parts:
        """Returns what the token adds."""
        self._tokens.append(token)
        text = self._chat.decode(self._tokens)
        if token not in self._chat.end_tokens:
            lead, tail = self._chat.shown_lead, self._chat.shown_tail
            if lead and lead.startswith(text):
                text = ""
            text = text.removesuffix(tail) if tail else text
        if not text.startswith(self._known):  # half a character: the next token mends it
            return thoughts.Parts("", "")
        new, self._known = text[len(self._known) :], text
        return self._splitter.push(new)

    def end(self) -> thoughts.Parts:
        """Returns what was held back."""
        return self._splitter.end()


def run(generate: "Generate") -> None:
    """Loads the student, and answers what is typed until its end."""
    if generate.samples > 1:
        raise UserError(
            f"--samples={generate.samples} is for --prompt, --file and a pipe: a conversation goes "
            "on from one answer; leave it out"
        )
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  lines can be edited, and earlier ones come back
    devices.keep_programs()
    note = Note()
    note.say(f"loading {generate.model}")
    mesh = make_mesh(devices=jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        network = loading.load_student(generate.model, mesh)
        chat = network.load_chat(generate.template, generate.chat_template_kwargs)
        chat.check_vocabulary(network.config.vocabulary)
        context = min(network.config.max_positions, MOST_CONTEXT)
        weights = prefill.only_copy(network.config, network.params)
        talk = _Talk(chat, Streamer(network.config, weights, context), Decoding.of(generate), note)
        talk.prepare()
        note.clear()
        print(f"{network.origin}. {HELP}", flush=True)
        talk.loop()


class _Talk:
    def __init__(self, chat: Chat, streamer: Streamer, decoding: Decoding, note: Note) -> None:
        self.chat, self.streamer, self.decoding, self.note = chat, streamer, decoding, note
        self.messages: list[dict[str, str]] = []
        self.asked = 0
        most = min(decoding.top_k, streamer.config.vocabulary)
        self.sampler = Sampler(decoding.temperature, most, decoding.top_p)

    def prepare(self) -> None:
        """Compiles what the first answer needs."""
        limit, context = self.decoding.max_new_tokens, self.streamer.context
        if limit >= context:
            raise UserError(
                f"--max_new_tokens={limit} leaves no room for a prompt: {context} tokens are for "
                "both; lower it"
            )
        end = np.asarray([self.chat.end_token] * 2, np.int32)
        for _ in self._stream(end, min(limit, context - len(end))):
            break

    def loop(self) -> None:
        """Answers line by line."""
        while (line := _typed()) is not None:
            if line == "/quit":
                return
            if line == "/new":
                self.messages = []
                print("a new conversation", flush=True)
            elif line.startswith("/") and line[1:].isalpha():
                print(f"{line} is unknown. {HELP}", flush=True)
            elif line:
                self.answer(line)

    def answer(self, line: str) -> None:
        """Answers one message; one that cannot be answered is not part of the conversation."""
        messages = [*self.messages, {"role": "user", "content": line}]
        try:
            prompt = np.asarray(self.chat.encode_prompt(messages), np.int32)
            longest = self.streamer.context - self.decoding.max_new_tokens
            if len(prompt) > longest:
                raise UserError(
                    f"the conversation has {len(prompt)} tokens, and {longest} fit next to "
                    f"--max_new_tokens={self.decoding.max_new_tokens}; /new starts another"
                )
        except UserError as error:
            print(sentence(error), flush=True)
            return
        said = self._show(prompt)
        if said:
            self.messages = [*messages, {"role": "assistant", "content": said}]

    def _show(self, prompt: np.ndarray) -> str:
        """Prints an answer as it comes; returns it without its thoughts."""
        growing, said, thinking = GrowingText(self.chat), "", False
        token, count = -1, 0
        with _interruptible() as stopped:
            self.note.say("…")

            def show(parts: thoughts.Parts) -> None:
                nonlocal said, thinking
                if not (parts.thoughts or parts.answer):
                    return
                self.note.clear()
                if parts.thoughts:
                    self._print(("" if thinking else "[thoughts]\n") + parts.thoughts)
                    thinking = True
                if parts.answer:
                    self._print(("\n[answer]\n" if thinking else "") + parts.answer)
                    thinking = False
                    said += parts.answer

            limit = self.decoding.max_new_tokens
            for token in self._stream(prompt, limit, stopped):
                count += 1
                show(growing.push(token))
            show(growing.end())
        self.note.clear()
        if stopped.is_set():
            self._print("\n[stopped]")
        elif token not in self.chat.end_tokens:
            self._print(f"\n[cut at --max_new_tokens={count}]")
        self._print("\n\n")
        return said

    def _stream(
        self, prompt: np.ndarray, limit: int, stopped: threading.Event | None = None
    ) -> Iterator[int]:
        seed = (self.decoding.seed + self.asked) % 2**32
        self.asked += stopped is not None
        ended = threading.Event() if stopped is None else stopped
        ends = self.chat.end_tokens
        return self.streamer.stream(
            prompt, limit, self.sampler, seed, ends, ended.is_set, self.note.say
        )

    def _print(self, text: str) -> None:
        sys.stdout.write(printable(text))
        sys.stdout.flush()


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Makes Ctrl-C set the event: raised anywhere, it could leave the devices' state in pieces.
    A second one ends the command."""
    stopped = threading.Event()

    def stop(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _typed() -> str | None:
    """Returns the next line; None at the end."""
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print(f"\n{HELP}")

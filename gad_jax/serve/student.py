"""A student that is ready to serve: weights on their devices, tokenizer, slots and context."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.data.template import Message
from gad_jax.distributed import devices
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import chunks, memory, prefill
from gad_jax.rollout.prefixes import PromptChunks
from gad_jax.rollout.ring import DecodeCopy, PromptCache
from gad_jax.settings import template_arguments
from gad_jax.settings.fields import FieldError
from gad_jax.types import Params

MOST_CHATS = 16
"""Chats of requests with arguments that are kept: each is probed once."""


@dataclass(frozen=True, eq=False)
class ServedStudent:
    """What decoding needs. `context` is the most tokens of a prompt and its answer together,
    `chunk` the prompt tokens that run between two steps, and `kept` the tokens of earlier prompts
    whose keys and values are kept."""

    config: DecoderConfig
    weights: DecodeCopy
    chat: Chat
    mesh: Mesh
    slots: int
    context: int
    chunk: int = 0
    kept: int = 0
    _encoding: threading.Lock = field(default_factory=threading.Lock)
    _chats: dict[str, Chat] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        config: DecoderConfig,
        params: Params,
        chat: Chat,
        mesh: Mesh,
        slots: int,
        context: int,
        chunk: int = 0,
        kept: int = 0,
    ) -> "ServedStudent":
        """Returns the student of a network; `params` are freed.

        `slots` and `chunk` of 0 are the platform's defaults. Raises UserError if the KV cache
        cannot fit.
        """
        chat.check_vocabulary(config.vocabulary)
        context = min(context, config.max_positions)
        slots = slots or (8 if devices.platform() == "cpu" else memory.default_slots())
        with jax.set_mesh(mesh):
            advice = "lower --slots or --context, or raise --tensor"
            memory.check_cache(config, slots, context, mesh, advice, prompt_tokens=context + kept)
            weights = prefill.only_copy(config, params)
        chunk = min(chunk or chunks.default_chunk(), context)
        return cls(config, weights, chat, mesh, slots, context, chunk, kept)

    def chat_with(self, arguments: Mapping[str, Any]) -> Chat:
        """Returns the chat with a request's arguments of the template over the student's own.

        Safe in any thread. Raises UserError for an argument that the template never reads.
        """
        if not arguments:
            return self.chat
        try:
            template_arguments.check(arguments)
        except FieldError as error:
            raise UserError(str(error)) from None
        name = template_arguments.show(arguments)
        with self._encoding:
            if name not in self._chats:
                while len(self._chats) >= MOST_CHATS:
                    del self._chats[next(iter(self._chats))]
                self._chats[name] = self.chat.with_arguments(arguments)
            return self._chats[name]

    def encode(self, conversation: Sequence[Message], chat: Chat | None = None) -> np.ndarray:
        """Returns the tokens of a conversation up to where the answer begins.

        Safe in any thread: a lock guards the tokenizer, which is not. Raises UserError, as
        `Chat.encode_prompt`.
        """
        with self._encoding:
            return np.asarray((chat or self.chat).encode_prompt(conversation), np.int32)

    def encode_text(self, text: str, special: bool = True) -> list[int]:
        """Returns the tokens of a text as transformers' tokenizer has it: control tokens in it are
        read as such, and with `special` the tokens that begin a text are added. Safe in any thread.
        """
        with self._encoding:
            return self.chat.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]

    def count_text(self, text: str) -> int:
        """Returns how many tokens a text has, control strings as text. Safe in any thread."""
        with self._encoding:
            return len(self.chat.encoder.continuation([text])[0])

    def prefill(self, tokens: Any) -> PromptCache:
        """Returns the prompt KV cache, without the last token. The caller sets the mesh."""
        prompt = PromptChunks(self.config, self.weights, self.context, self.chunk)
        prompt.begin(tokens)
        while not prompt.done:
            prompt.advance()
        return prompt.cache

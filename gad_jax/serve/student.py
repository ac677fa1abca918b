"""A student that is ready to serve: weights on their devices, tokenizer, slots and context."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gad_jax.base import buckets
from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.data.template import Message
from gad_jax.distributed import devices
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import memory, prefill
from gad_jax.rollout.ring import DecodeCopy, PromptCache
from gad_jax.settings import template_arguments
from gad_jax.settings.fields import FieldError
from gad_jax.types import Params

LEAST_PROMPT_ROW = 64

MOST_CHATS = 16
"""Chats of requests with arguments that are kept: each is probed once."""


@dataclass(frozen=True, eq=False)
class ServedStudent:
    """What decoding needs. `context` is the most tokens of a prompt and its answer together."""

    config: DecoderConfig
    params: Params
    weights: DecodeCopy
    chat: Chat
    mesh: Mesh
    slots: int
    context: int
    _encoding: threading.Lock = field(default_factory=threading.Lock)
    _chats: dict[str, Chat] = field(default_factory=dict)

    @classmethod
    def make(
        cls, config: DecoderConfig, params: Params, chat: Chat, mesh: Mesh, slots: int, context: int
    ) -> "ServedStudent":
        """Returns the student of a network. Raises UserError if the KV cache cannot fit."""
        chat.check_vocabulary(config.vocabulary)
        context = min(context, config.max_positions)
        slots = slots or (8 if devices.platform() == "cpu" else memory.default_slots())
        with jax.set_mesh(mesh):
            advice = "lower --slots or --context, or raise --tensor"
            memory.check_cache(config, slots, context, mesh, advice)
            params = _in_compute_dtype(config, params)
            weights = prefill.decode_copy(config, params)
        return cls(config, params, weights, chat, mesh, slots, context)

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
        """Returns the prompt KV cache. The caller sets the mesh.

        The prompt is padded to a power of two, so that only a few programs are compiled.
        """
        length = len(tokens)
        width = max(LEAST_PROMPT_ROW, buckets.power_of_two(length))
        rows = np.zeros((3, 1, width), np.int32)
        rows[0, 0, :length] = tokens
        rows[1, 0, :length] = np.arange(length)
        rows[2, 0, :length] = 1
        arrays = devices.put(tuple(rows), self.mesh, "batch")
        return prefill.prefill(self.config, self.params, width, *arrays)


@jax.jit(static_argnames="config", donate_argnames="params")
def _in_compute_dtype(config: DecoderConfig, params: Params) -> Params:
    """Returns the weights in the dtype of computation; frees the float32 weights of training."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(config.compute_dtype)), params)

"""A network as a distribution over responses of at most T tokens, with exact log-probabilities.

A response ends with an end token, or it is cut after T tokens. The probability of a cut one is that
of its tokens: of all its continuations together. So the probabilities of all responses sum to 1,
and the KL divergences of two networks are those of the processes cut at T.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from gad_jax.base import buckets
from gad_jax.base.errors import UserError
from gad_jax.core import forward, packing
from gad_jax.core.layout import Shape
from gad_jax.data.chat import Chat, Conversation
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import engine, prefill
from gad_jax.rollout.sampling import Sampler
from gad_jax.training import loading
from gad_jax.types import PackedRows, Params

Responses = list[list[np.ndarray]]
"""Tokens of each response to each prompt, with the end token where it ended."""

AT_ONCE = 8
"""Prompts whose responses run through a network together."""

_ROW_MULTIPLE = 128
_CHUNK = 512  # positions whose logits are in memory at a time


class Samples(NamedTuple):
    """Responses to each prompt, their log-probabilities, and whether they ended by themselves."""

    tokens: Responses
    logprobs: Float[np.ndarray, "B N"]
    finished: Bool[np.ndarray, "B N"]


class Policy:
    """A network at a temperature; use it under its mesh. All of it is computed in float32."""

    def __init__(
        self,
        config: DecoderConfig,
        params: Params,
        chat: Chat,
        mesh: Mesh,
        max_new_tokens: int,
        temperature: float = 1.0,
    ) -> None:
        self.config = dataclasses.replace(config, compute_dtype="float32")
        self.params, self.chat, self.mesh = params, chat, mesh
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self._weights: Any = None
        self._shapes: set[Shape] = set()

    @classmethod
    def load(cls, name: str, chat: Chat, mesh: Mesh, max_new_tokens: int) -> "Policy":
        """Returns the student called `name`, a model or a run."""
        network = loading.load_student(name, mesh)
        return cls(network.config, network.params, chat, mesh, max_new_tokens)

    def encode(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        """Returns the tokens of each conversation. Raises UserError for one that is too long."""
        prompts = [
            np.asarray(tokens, np.int32) for tokens in self.chat.encode_prompts(conversations)
        ]
        most = self.config.max_positions - self.max_new_tokens
        longest = max(map(len, prompts), default=0)
        if longest > most:
            raise UserError(
                f"a prompt has {longest} tokens with its system prompt, and {most} fit next to "
                f"--max_new_tokens={self.max_new_tokens}; drop long prompts or lower that"
            )
        return prompts

    def sample(
        self, prompts: Sequence[np.ndarray], numbers: Sequence[int], samples: int, key: Array
    ) -> Samples:
        """Returns responses to encoded prompts. What is drawn for a prompt depends on the key and
        on the prompt's number, not on the other prompts."""
        program = engine.RolloutProgram(
            samples,
            self.max_new_tokens,
            self.chat.end_tokens,
            self.chat.pad_token,
            Sampler(self.temperature),
        )
        if self._weights is None:
            self._weights = prefill.decode_copy(self.config, self.params)
        found = engine.generate(
            self.config,
            self.params,
            list(prompts),
            np.asarray(numbers, np.int32),
            key,
            program,
            self.mesh,
            self._weights,
        )
        tokens = [
            [row[:length] for row, length in zip(group, lengths, strict=True)]
            for group, lengths in zip(found.tokens, found.lengths, strict=True)
        ]
        # The log-probabilities of the very distributions that the tokens were drawn from.
        logprobs = np.asarray(found.logprobs, np.float64).sum(axis=-1)
        return Samples(tokens, logprobs, np.asarray(found.finished))

    def log_probabilities(
        self, prompts: Sequence[np.ndarray], responses: Responses
    ) -> Float[np.ndarray, "B N"]:
        """Returns the log-probability of each response, in nats; every prompt has N of them.

        That of a response without an end token is of its tokens, as if it was cut there.
        """
        found = [
            self._sums(rows, count, partial(_logprobs, self.config, self.temperature))[..., 0]
            for rows, count in self._packed(prompts, responses)
        ]
        return np.concatenate(found)

    def hidden_means(
        self, prompts: Sequence[np.ndarray], responses: Responses
    ) -> Float[np.ndarray, "B N D"]:
        """Returns the mean of the last hidden states from which a response's tokens follow."""
        found = [
            self._sums(rows, count, partial(_hidden, self.config))
            for rows, count in self._packed(prompts, responses)
        ]
        lengths = np.asarray([[len(response) for response in group] for group in responses])
        return np.concatenate(found) / lengths[..., None]

    def _packed(self, prompts: Sequence[np.ndarray], responses: Responses) -> Any:
        """Yields packed rows of some prompts, and how many of them count: the last rows repeat
        prompts, so that all have one shape."""
        longest = max(
            len(prompt) + max(map(len, group))
            for prompt, group in zip(prompts, responses, strict=True)
        )
        for start in range(0, len(prompts), AT_ONCE):
            count = min(AT_ONCE, len(prompts) - start)
            filled = [start + n % count for n in range(min(AT_ONCE, len(prompts)))]
            rows = packing.pack(
                [prompts[n] for n in filled],
                [responses[n] for n in filled],
                row_tokens=buckets.round_up(longest, _ROW_MULTIPLE),
                shards=data_shards(self.mesh),
                known=self._shapes,
            )
            micro, height, length = rows.tokens.shape
            self._shapes.add((micro, height, length))
            yield rows, count

    def _sums(self, rows: PackedRows, count: int, compute: Any) -> Float[np.ndarray, "b N F"]:
        """Returns sums over each response of what `compute` finds at each position, in float64."""
        _, groups, members, _ = rows.ends.shape
        mask, sequences = np.asarray(rows.mask[0]), np.asarray(rows.sequences[0])
        found = devices.fetch(compute(self.params, packing.place(rows, self.mesh)))
        found = found.reshape(*mask.shape, -1).astype(np.float64)
        sums = np.zeros((groups * members, found.shape[-1]))
        np.add.at(sums, sequences[mask], found[mask])
        return sums.reshape(groups, members, -1)[:count]


@partial(jax.jit, static_argnums=(0, 1))
def _logprobs(
    config: DecoderConfig, temperature: float, params: Params, rows: PackedRows
) -> Float[Array, "M T"]:
    only = jax.tree.map(lambda x: x[0], rows)
    with jax.default_matmul_precision("float32"):  # GPUs would round the factors
        return forward.response_logprobs(config, params, only, temperature, _CHUNK)[0]


@partial(jax.jit, static_argnums=0)
def _hidden(config: DecoderConfig, params: Params, rows: PackedRows) -> Float[Array, "M T D"]:
    tokens, positions, segments = jax.tree.map(
        lambda x: x[0], (rows.tokens, rows.positions, rows.segments)
    )
    return decoder.hidden(config, params, tokens, positions, segments)[0]

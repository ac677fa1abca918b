"""A discriminator's scores of answers given as text."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gad_jax.base import buckets
from gad_jax.data.chat import Chat
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Params, Segments

_LENGTH_MULTIPLE = 128

_score = jax.jit(decoder.score, static_argnames="config")


class Scorer:
    """A loaded discriminator, called with conversations and texts. Use it under the mesh.

    The texts are tokenized again, so a score may differ a little from that of the tokens sampled in
    training. An answer that was cut is scored without an end token, as in training.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Params,
        chat: Chat,
        mesh: jax.sharding.Mesh,
        rows: int = 16,
    ):
        chat.check_vocabulary(config.vocabulary)
        self.config, self.params, self.chat, self.mesh = config, params, chat, mesh
        self.rows = buckets.round_up(rows, data_shards(mesh))

    def __call__(
        self, conversations: Sequence[Any], texts: Sequence[str], complete: Sequence[bool]
    ) -> list[float]:
        """Returns D(x, y) of each text y in response to its conversation x; NaN where both together
        have more tokens than the discriminator's context length."""
        prompts = self.chat.encode_prompts(conversations)
        sequences = [
            [*prompt, *self.chat.encode_response(text, whole)]
            for prompt, text, whole in zip(prompts, texts, complete, strict=True)
        ]
        scores = np.full(len(sequences), np.nan)
        fitting = [n for n, s in enumerate(sequences) if len(s) <= self.config.max_positions]
        for start in range(0, len(fitting), self.rows):
            chosen = fitting[start : start + self.rows]
            scores[chosen] = self._score([sequences[n] for n in chosen])
        return scores.tolist()

    def _score(self, sequences: list[list[int]]) -> np.ndarray:
        width = buckets.round_up(max(map(len, sequences)), _LENGTH_MULTIPLE)
        tokens = np.full((self.rows, width), self.chat.pad_token, np.int32)
        lengths = np.zeros(self.rows, np.int32)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = sequence
            lengths[row] = len(sequence)
        index = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
        real = (index < lengths[:, None]).astype(np.int32)
        tokens, index, real = devices.put((tokens, index, real), self.mesh, "batch")
        scores = _score(self.config, self.params, tokens, index, Segments(real, real))
        scores = devices.fetch(scores)
        return scores[np.arange(len(sequences)), lengths[: len(sequences)] - 1]

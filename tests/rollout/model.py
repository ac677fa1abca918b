"""A random-tiny that answers on a mesh, and what it is asked."""

from typing import Any

import jax
import numpy as np

from gad_jax.distributed import devices
from gad_jax.models import decoder, weights
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import engine
from gad_jax.rollout.engine import RolloutProgram
from gad_jax.rollout.sampling import Sampler
from gad_jax.types import Params, Rollout, Segments

PAD, LIMIT = 256, 12
NO_END = (512,)  # which is beyond the vocabulary: no response ends
# Two sums of the same float32 products: over a cache, and over a whole row.
SAME = 1e-5

SAMPLING = RolloutProgram(3, LIMIT, NO_END, PAD, Sampler(temperature=0.8))
GREEDY = RolloutProgram(1, LIMIT, NO_END, PAD)

logits = jax.jit(decoder.logits, static_argnums=0)


def prompts(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, length).astype(np.int32) for length in lengths]


PROMPTS = prompts(5, 9, 30, 17)


class Model:
    """A random-tiny on a mesh, and what it answers."""

    def __init__(self, directory: Any, mesh: jax.sharding.Mesh):
        self.mesh = mesh
        self.config: DecoderConfig
        self.params: Params
        self.config, self.params = weights.load(directory, mesh)

    def answer(
        self,
        settings: RolloutProgram = SAMPLING,
        prompts: list[np.ndarray] = PROMPTS,
        indices: Any = None,
        step: int = 0,
    ) -> Rollout:
        indices = np.arange(len(prompts)) if indices is None else np.asarray(indices)
        with jax.set_mesh(self.mesh):
            key = jax.random.fold_in(jax.random.key(1), step)
            return engine.generate(
                self.config, self.params, prompts, indices, key, settings, self.mesh
            )

    def forced(self, prompts: list[np.ndarray], rollout: Rollout) -> list[np.ndarray]:
        """Returns the logits [length V] of each response, from one pass over its whole row."""
        sequences, starts, longest = [], [], rollout.tokens.shape[-1]
        for prompt, group in zip(prompts, rollout.tokens, strict=True):
            for tokens in group:
                sequences.append(np.concatenate([prompt, tokens]))
                starts.append(len(prompt) - 1)
        width = max(map(len, sequences))
        ids = np.zeros((len(sequences), width), np.int32)
        own = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            own[row, : len(sequence)] = 1
        positions = np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape)
        with jax.set_mesh(self.mesh):
            arrays = devices.put((ids, positions, Segments(own, own)), self.mesh, "batch")
            whole = devices.fetch(logits(self.config, self.params, *arrays))
        return [row[start : start + longest] for row, start in zip(whole, starts, strict=True)]


def assert_same(rollout: Rollout, expected: Rollout) -> None:
    np.testing.assert_array_equal(rollout.tokens, expected.tokens)
    np.testing.assert_allclose(rollout.logprobs, expected.logprobs, atol=SAME)
    np.testing.assert_array_equal(rollout.lengths, expected.lengths)
    np.testing.assert_array_equal(rollout.finished, expected.finished)

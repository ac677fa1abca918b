"""Answers token by token are those of the rollout; they can be stopped."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gad_jax.rollout import prefill
from gad_jax.rollout.sampling import GREEDY as GREEDILY
from gad_jax.rollout.streaming import Streamer
from tests.rollout.model import GREEDY, LIMIT, PROMPTS, Model


def test_a_stream_is_the_answer(llama: Model) -> None:
    expected = llama.answer(GREEDY).tokens[:, 0]
    with jax.set_mesh(llama.mesh):
        weights = prefill.decode_copy(llama.config, llama.params)
        streamer = Streamer(llama.config, weights, 100)
        said: list[str] = []

        def draw(
            prompt: np.ndarray, ends: tuple[int, ...] = (), stopped: Any = lambda: False
        ) -> Iterator[int]:
            return streamer.stream(prompt, LIMIT, GREEDILY, 0, ends, stopped, said.append)

        for prompt, answer in zip(PROMPTS, expected.tolist(), strict=True):
            assert list(draw(prompt)) == answer
            assert list(draw(prompt, ends=(answer[3],))) == answer[: answer.index(answer[3]) + 1]
        assert said == ["compiling"]
        first = expected[0].tolist()
        asked = iter([False, False, False, True])  # before the chunk, and before each token
        assert list(draw(PROMPTS[0], stopped=lambda: next(asked))) == first[:2]
        assert list(draw(np.arange(80), stopped=lambda: True)) == []
        assert list(draw(PROMPTS[0])) == first

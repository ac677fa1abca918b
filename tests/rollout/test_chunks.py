"""Prompts in chunks give the keys and values of the whole prompt, in every family."""

from pathlib import Path

import jax
import numpy as np
import pytest

from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.rollout import chunks, prefill
from tests.models import networks
from tests.models.networks import NETWORKS
from tests.rollout.model import SAME, Model, prompts

CHUNK, SIZE, LENGTH = 8, 40, 30
(PROMPT,) = prompts(LENGTH)
DIFFERENT = {"gemma3": 1, "phi4-mini": 1, "mistral": 1, "qwen3-moe-window": 1, "smollm3-window": 2}
"""Windows smaller and larger than a chunk, partial rotation, a mixture, layers without positions
on two devices."""


@pytest.mark.parametrize("name", DIFFERENT)
def test_chunks_are_the_whole_prompt(name: str, tmp_path: Path) -> None:
    tensor = DIFFERENT[name]
    directory = networks.write(tmp_path / name, NETWORKS[name])
    model = Model(directory, make_mesh(1, 1, tensor, jax.devices()[:tensor]))
    rows = np.zeros((3, 1, LENGTH), np.int32)
    rows[0], rows[1], rows[2] = PROMPT, np.arange(LENGTH), 1
    with jax.set_mesh(model.mesh):
        arrays = devices.put(tuple(rows), model.mesh, "batch")
        expected = prefill.prefill(model.config, model.params, LENGTH, *arrays)
        weights = prefill.decode_copy(model.config, model.params)
        cache = chunks.empty(model.config, SIZE)
        parts = []
        for start in range(0, LENGTH, CHUNK):
            tokens = np.zeros(CHUNK, np.int32)
            some = PROMPT[start : start + CHUNK]
            tokens[: len(some)] = some
            cache, part = chunks.run(model.config, weights, cache, tokens, np.int32(start))
            parts.append(part)
        again = chunks.empty(model.config, SIZE)
        for number in (2, 0, 3, 1):
            again = chunks.load(again, parts[number], np.int32(number * CHUNK))
        expected, cache, again = devices.fetch((expected, cache, again))
    for whole, found, copied in zip(expected.keys, cache.keys, again.keys, strict=True):
        np.testing.assert_allclose(found[..., :LENGTH], whole, atol=SAME)
        np.testing.assert_array_equal(copied, found)
    for whole, found, copied in zip(expected.values, cache.values, again.values, strict=True):
        np.testing.assert_allclose(found[:, :LENGTH], whole, atol=SAME)
        np.testing.assert_array_equal(copied, found)

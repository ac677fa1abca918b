"""Scores of texts: those of the network, whatever is scored together with them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from gad_jax.data.chat import Chat
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import data_shards, make_mesh
from gad_jax.metrics.scoring import Scorer
from gad_jax.models import decoder, weights
from gad_jax.models.builtin import tiny
from gad_jax.types import Segments

CONVERSATIONS = [[{"role": "user", "content": text}] for text in ("Hi.", "Name a fruit.", "?")]
TEXTS = ["Hello!", "An apple, or a pear if you like those better.", ""]


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[Any, ...]]:
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        config, params = weights.load(tiny.fetch(), mesh)
        params = {name: value for name, value in params.items() if name != "head"}
        params["score"] = decoder.init_score(config, jax.random.key(0), stddev=1.0)
        config = dataclasses.replace(config, head="score")
        yield config, params, Chat.load(tiny.fetch(), "none"), mesh


def test_a_score_is_that_of_the_last_token(network: tuple[Any, ...]) -> None:
    config, params, chat, mesh = network
    scores = Scorer(config, params, chat, mesh, rows=2)(CONVERSATIONS, TEXTS, [True, False, True])
    for conversation, text, complete, score in zip(
        CONVERSATIONS, TEXTS, [True, False, True], scores, strict=True
    ):
        tokens = chat.encode_prompt(conversation) + chat.encode_response(text, complete)
        row = np.asarray([tokens] * data_shards(mesh), np.int32)
        index = np.broadcast_to(np.arange(row.shape[1], dtype=np.int32), row.shape)
        row, index, ones = devices.put((row, index, np.ones_like(row)), mesh, "batch")
        alone = decoder.score(config, params, row, index, Segments(ones, ones))
        # float32, sums in another order
        assert score == pytest.approx(float(devices.fetch(alone)[0, -1]), abs=1e-4)


def test_a_score_does_not_depend_on_its_neighbours(network: tuple[Any, ...]) -> None:
    config, params, chat, mesh = network
    scorer = Scorer(config, params, chat, mesh)
    together = scorer(CONVERSATIONS, TEXTS, [True] * 3)
    alone = [scorer([c], [t], [True])[0] for c, t in zip(CONVERSATIONS, TEXTS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-6)


def test_what_is_too_long_has_no_score(network: tuple[Any, ...]) -> None:
    config, params, chat, mesh = network
    long = "x" * (config.max_positions + 1)
    scores = Scorer(config, params, chat, mesh)(CONVERSATIONS[:2], [long, "An apple."], [True] * 2)
    assert np.isnan(scores[0])
    assert np.isfinite(scores[1])

"""Prompts that begin alike: what they share runs once, and is what it would be without."""

from typing import Any

import jax
import numpy as np
import pytest

from gad_jax.distributed import devices
from gad_jax.rollout import chunks, prefill
from gad_jax.rollout.prefixes import PromptChunks
from gad_jax.rollout.ring import DecodeCopy
from tests.rollout.model import Model, prompts

CHUNK, LONGEST, KEPT = 8, 64, 40


@pytest.fixture(scope="module")
def weights(llama: Model) -> DecodeCopy:
    with jax.set_mesh(llama.mesh):
        return prefill.decode_copy(llama.config, llama.params)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where the chunks that ran began."""
    begun: list[int] = []
    run = chunks.run

    def told(config: Any, weights: Any, cache: Any, tokens: Any, start: Any) -> Any:
        begun.append(int(start))
        return run(config, weights, cache, tokens, start)

    monkeypatch.setattr(chunks, "run", told)
    return begun


def finish(one: PromptChunks, prompt: np.ndarray) -> list[np.ndarray]:
    """Runs a prompt; returns the keys and values of all its tokens but the last."""
    one.begin(prompt)
    while not one.done:
        one.advance()
    cached = len(prompt) - 1
    keys, values = devices.fetch(one.cache)
    return [*(x[..., :cached] for x in keys), *(x[:, :cached] for x in values)]


def test_what_two_prompts_share_runs_once(
    llama: Model, weights: DecodeCopy, runs: list[int]
) -> None:
    first, other = prompts(30, 50)
    longer = np.concatenate([first, other[:10]])
    with jax.set_mesh(llama.mesh):
        one = PromptChunks(llama.config, weights, LONGEST, CHUNK, KEPT)

        def begins(prompt: np.ndarray) -> list[int]:
            runs.clear()
            finish(one, prompt)
            return list(runs)

        assert begins(first) == [0, 8, 16, 24]
        assert begins(first) == []  # the choices of one request
        assert begins(first[:12]) == []
        assert begins(longer) == [24, 32]  # the next turn of a conversation
        assert begins(other[:9]) == [0]
        assert begins(longer) == [32]  # four of its chunks were kept
        assert begins(other) == [8, 16, 24, 32, 40, 48]  # as many as are kept of its own, and more
        assert one.kept == KEPT
        assert begins(first) == [0, 8, 16, 24]  # long gone
        assert begins(other[:41]) == [16, 24, 32]  # its end was dropped, not its beginning
        assert begins(first[:1]) == []
        nothing_kept = PromptChunks(llama.config, weights, LONGEST, CHUNK)
        for prompt in (first, other):
            finish(nothing_kept, prompt)
        assert nothing_kept.kept == 0


def test_shared_beginnings_change_nothing(llama: Model, weights: DecodeCopy) -> None:
    random = np.random.default_rng(0)
    with jax.set_mesh(llama.mesh):
        one = PromptChunks(llama.config, weights, LONGEST, CHUNK, KEPT)
        known = [random.integers(0, 256, 60)]
        for _ in range(25):
            before = known[random.integers(len(known))]
            rest = random.integers(0, 256, 60)
            cut = random.integers(0, 60)
            known.append(np.concatenate([before[:cut], rest])[: random.integers(1, LONGEST)])
            found = finish(one, known[-1])
            fresh = finish(PromptChunks(llama.config, weights, LONGEST, CHUNK), known[-1])
            for x, y in zip(found, fresh, strict=True):
                np.testing.assert_array_equal(x, y)
            assert one.kept <= KEPT


def test_a_lost_cache_is_made_anew(llama: Model, weights: DecodeCopy) -> None:
    (prompt,) = prompts(20)
    with jax.set_mesh(llama.mesh):
        one = PromptChunks(llama.config, weights, LONGEST, CHUNK)
        expected = finish(one, prompt)
        one.begin(np.flip(prompt))
        one.advance()
        for array in jax.tree.leaves(one.cache):  # as by a program that failed after it took them
            array.delete()
        for x, y in zip(finish(one, prompt), expected, strict=True):
            np.testing.assert_array_equal(x, y)
        fresh = finish(PromptChunks(llama.config, weights, LONGEST, CHUNK), prompt[:9])
        for array in jax.tree.leaves(one.cache):
            array.delete()
        for x, y in zip(finish(one, prompt[:9]), fresh, strict=True):  # all of it had run
            np.testing.assert_array_equal(x, y)

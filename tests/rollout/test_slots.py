"""Several steps between two checks of the decode loop: the same samples, as the plan expects."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from gad_jax.distributed import devices
from gad_jax.distributed.mesh import data_shards, make_mesh
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.plan import decoding
from gad_jax.rollout import engine, slots
from gad_jax.rollout.sampling import Sampler
from gad_jax.rollout.slots import RolloutProgram
from gad_jax.types import Rollout
from tests.rollout.model import PAD, SAME, Model, assert_same, prompts

ENDS = tuple(range(0, 512, 30))  # some responses end early, at any step
# Responses of one token next to some of 30, in caches that hold no token more than the longest.
LIMITS = np.array([30, 1, 9, 25, 2, 16, 5])
ASKED = prompts(3, 25, 17, 1, 20, 8, 19)
LONGEST = 33
SAMPLING = RolloutProgram(*(6, 30, ENDS, PAD, Sampler(0.8, top_k=100)), slots=3, longest=LONGEST)


def decoded(model: Model, steps: int, **changes: Any) -> tuple[Rollout, Any]:
    """Returns what the loop sampled with so many steps per check, and its calls.

    The calls are as the plan expects them.
    """
    settings = dataclasses.replace(SAMPLING, steps_per_check=steps, **changes)
    with jax.set_mesh(model.mesh):
        rollout, calls = engine.sample_responses(
            *(model.config, model.params, ASKED, np.arange(len(ASKED)), jax.random.key(3)),
            *(settings, model.mesh),
            limits=LIMITS,
        )
    lengths, shards = np.array([len(prompt) for prompt in ASKED]), data_shards(model.mesh)
    arguments = (lengths, rollout.lengths, shards, settings.slots, settings.longest, LIMITS)
    assert calls == decoding.decode_calls(*arguments, settings.steps)
    return rollout, calls


def steps_of(calls: Any) -> int:
    return sum(call.steps for call in calls)


def same(found: Rollout, wanted: Rollout) -> None:
    """Tokens are equal; log-probs are sums over a ring, which begins elsewhere: other rounding."""
    assert_same(found, wanted)
    np.testing.assert_allclose(found.thresholds, wanted.thresholds, atol=SAME)


@pytest.fixture(scope="module")
def every_step(llama: Model) -> tuple[Rollout, Any]:
    return decoded(llama, 1)


@pytest.mark.parametrize("steps", [3, 8])
def test_the_steps_between_two_checks_change_no_sample(
    llama: Model, every_step: tuple[Rollout, Any], steps: int
) -> None:
    wanted, before = every_step
    found, calls = decoded(llama, steps)
    # No sequence is longer than the cache, though 8 steps are run when it is nearly full.
    assert max(len(prompt) + limit for prompt, limit in zip(ASKED, LIMITS, strict=True)) == LONGEST
    assert {call.capacity for call in calls} == {LONGEST}
    assert 0 < wanted.finished.mean() < 1
    assert (wanted.lengths == LIMITS[:, None]).any(axis=1).all()
    same(found, wanted)
    # A slot idles for at most steps - 1 steps after each of its responses.
    assert all(call.steps % steps == 0 for call in calls)
    most = steps_of(before) + (steps - 1) * wanted.lengths.size
    assert steps_of(before) <= steps_of(calls) <= most
    used = sum(call.slots * call.steps for call in calls)
    assert engine.occupancy(found, calls, 1) == wanted.lengths.sum() / used


def test_eight_devices_sample_the_same_with_several_steps(
    tmp_path: Any, every_step: tuple[Rollout, Any]
) -> None:
    write_tiny(tmp_path, "llama")
    found, _ = decoded(Model(tmp_path, make_mesh(1, 4, 2)), 8, slots=2)
    same(found, every_step[0])


def test_of_many_slots_several_are_refilled_at_once(
    llama: Model, every_step: tuple[Rollout, Any]
) -> None:
    """All of them in a loop at first; later two at a time, and all where more are idle."""
    assert slots.most_refilled(32) == 2
    found, _ = decoded(llama, 8, slots=32)
    same(found, every_step[0])


def test_the_host_of_a_gpu_checks_less_often_where_responses_may_be_long() -> None:
    assert [slots.default_steps(limit) for limit in (1, 1536)] == [1, 1]
    with devices.compiling_for("tpu"):
        assert SAMPLING.steps == 1
    with devices.compiling_for("gpu"):
        assert [slots.default_steps(limit) for limit in (1, 16, 40, 64, 128, 1536)] == (
            [1, 1, 2, 4, 8, 8]
        )
        assert SAMPLING.steps == 1
        assert dataclasses.replace(SAMPLING, steps_per_check=3).steps == 3

"""Slots that are filled from the host draw what the loop draws, whatever other slots hold."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.data.chat import Chat
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import weights
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.rollout import engine, live
from gad_jax.rollout.engine import RolloutProgram
from gad_jax.rollout.sampling import GREEDY, RowSamplers, Sampler, sample, sample_rows
from gad_jax.serve.student import ServedStudent

LIMIT = 20
SAMPLERS = (
    GREEDY,
    Sampler(0.7),
    Sampler(1.0, top_k=5),
    Sampler(1.3, top_p=0.6),
    Sampler(1.0, min_p=0.05),
    Sampler(0.9, top_k=40, top_p=0.8, min_p=0.01),
    Sampler(0.0, top_k=3, top_p=0.1, min_p=0.9),
    Sampler(1.0, top_k=10_000),
)


def test_every_row_is_drawn_as_by_a_sampler_of_its_own() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        logits = jnp.asarray(random.normal(0, 3, (len(SAMPLERS), 700)), jnp.float32)
        uniform = jnp.asarray(random.random(len(SAMPLERS)), jnp.float32)
        tokens, logprobs = jax.jit(sample_rows)(logits, uniform, RowSamplers.of(*SAMPLERS))
        for row, sampler in enumerate(SAMPLERS):
            token, logprob = sample(logits[row : row + 1], uniform[row : row + 1], sampler)
            assert int(tokens[row]) == int(token[0])
            np.testing.assert_allclose(logprobs[row], logprob[0], atol=1e-6)


def student(directory: Any, tensor: int = 1, slots: int = 3) -> ServedStudent:
    mesh = make_mesh(fsdp=1, tensor=tensor, devices=jax.devices()[:tensor])
    with jax.set_mesh(mesh):
        config, params = weights.load(directory, mesh)
    chat = Chat.load(directory, "none")
    return ServedStudent.make(config, params, chat, mesh, slots, 512, chunk=32)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny(directory)
    return directory


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, n).astype(np.int32) for n in (3, 50, 1, 90, 17)]


@pytest.fixture(scope="module")
def expected(directory: Any, prompts: list[np.ndarray]) -> np.ndarray:
    settings = RolloutProgram(1, LIMIT, (512,), 256)  # no token ends, as the vocabulary has no 512
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        config, params = weights.load(directory, mesh)
        rollout = engine.generate(
            *(config, params, prompts, np.arange(5), jax.random.key(0), settings, mesh)
        )
    return np.asarray(rollout.tokens)[:, 0]


def decode(
    one: ServedStudent, prompts: list[np.ndarray], sampler: Sampler, seeds: range, capacity: int
) -> list[list[int]]:
    """Each prompt enters the slot of its number two steps after the one before it."""
    drawn: list[list[int]] = [[] for _ in prompts]
    held: dict[int, int] = {}
    with jax.set_mesh(one.mesh):
        state = live.start(one.config, one.slots, capacity)
        waiting = list(range(len(prompts)))
        for step in range(1000):
            free = [slot for slot in range(one.slots) if slot not in held]
            if step % 2 == 0 and waiting and free:
                index = waiting.pop(0)
                held[free[0]] = index
                prompt = prompts[index]
                place = np.asarray([free[0], len(prompt), prompt[-1]], np.int32)
                state = live.insert(
                    state,
                    one.prefill(prompt),
                    *place,
                    np.uint32(seeds[index]),
                    RowSamplers.of(sampler),
                )
            if step == 5:
                state = live.resize(one.config, state, 2 * capacity)
            if step == 30:
                state = live.resize(one.config, state, capacity)
            state, tokens, _ = live.step(one.config, one.weights, state)
            ready = devices.fetch(tokens)
            for slot, index in list(held.items()):
                drawn[index].append(int(ready[slot]))
                if len(drawn[index]) == LIMIT:
                    del held[slot]
            if not held and not waiting:
                return drawn
    raise AssertionError


@pytest.mark.parametrize("tensor", [1, 2])
def test_slots_draw_what_the_loop_draws(
    directory: Any, prompts: list[np.ndarray], expected: np.ndarray, tensor: int
) -> None:
    drawn = decode(student(directory, tensor), prompts, GREEDY, range(5), 128)
    np.testing.assert_array_equal(drawn, expected)


def test_a_sample_is_of_its_seed_alone(directory: Any, prompts: list[np.ndarray]) -> None:
    sampler = Sampler(1.0, top_p=0.95)
    together = decode(student(directory), prompts, sampler, range(5), 128)
    alone = decode(student(directory, slots=1), prompts[3:4], sampler, range(3, 4), 256)
    assert alone == together[3:4]
    others = decode(student(directory), prompts, sampler, range(100, 105), 128)
    assert all(one != other for one, other in zip(together, others, strict=True))

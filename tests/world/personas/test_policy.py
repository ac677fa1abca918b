"""Exact log-probabilities, and the measures made of them, against an enumeration of all responses.

The student has 16 tokens, so the responses of at most three tokens can be listed.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from gad_jax.data.chat import Chat
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import decoder, weights
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Segments
from gad_jax.world import words
from gad_jax.world.personas import measures, mixture
from gad_jax.world.personas.mixture import Persona
from gad_jax.world.personas.policy import Policy
from gad_jax.world.personas.teacher import Teacher

WORDS = ("be", "brief", "grand", "yes", "no", "why")
LIMIT = 3
PERSONAS = (Persona("brief", 0.7, "be brief"), Persona("grand", 0.3, "be grand"))
ASKED = [{"role": "user", "content": "why"}]
TEMPERATURE = 0.8
# float32 sums over 24 numbers and 16 logits, of log-probabilities of at most some tens of nats
CLOSE = 2e-4

logits = jax.jit(decoder.logits, static_argnums=0)


class World(NamedTuple):
    """A teacher, a student, and all responses to one question: their enumerated probabilities `p`
    and `q`, and what is measured of them."""

    teacher: Teacher
    student: Policy
    responses: list[np.ndarray]
    p: np.ndarray
    q: np.ndarray
    joint: np.ndarray
    log_q: np.ndarray


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):

        def policy(seed: int, temperature: float) -> Policy:
            path = tmp_path_factory.mktemp("model")
            words.write_student(path, WORDS, layers=1, width=24, seed=seed)
            config, params = weights.load(path, mesh)
            params = jax.tree.map(lambda leaf: 3 * leaf, params)  # else all is close to uniform
            return Policy(config, params, Chat.load(path, "none"), mesh, LIMIT, temperature)

        student = policy(1, 1.0)
        responses = everything(student.config.vocabulary, student.chat.end_tokens)
        teacher = Teacher(policy(0, TEMPERATURE), PERSONAS)
        p, q = mixed(teacher, responses), np.exp(enumerated(student, ASKED, responses))
        (joint,) = teacher.joint([ASKED], [responses])
        (log_q,) = student.log_probabilities(student.encode([ASKED]), [responses])
        yield World(teacher, student, responses, p, q, joint, log_q)


def everything(vocabulary: int, ends: tuple[int, ...]) -> list[np.ndarray]:
    """All responses: those that end within the limit, and the cut ones."""
    found = []
    for length in range(1, LIMIT + 1):
        for tokens in itertools.product(range(vocabulary), repeat=length):
            if any(token in ends for token in tokens[:-1]):
                continue
            if tokens[-1] in ends or length == LIMIT:
                found.append(np.asarray(tokens, np.int32))
    return found


def enumerated(policy: Policy, messages: Any, responses: list[np.ndarray]) -> np.ndarray:
    """The log-probability of each response, one token after the other, from unpacked rows."""
    prompt = policy.chat.encode_prompt(messages)
    width = len(prompt) + LIMIT
    rows = np.zeros((len(responses), width), np.int32)
    for row, response in zip(rows, responses, strict=True):
        row[: len(prompt) + len(response)] = [*prompt, *response]
    ones = np.ones_like(rows)
    index = np.broadcast_to(np.arange(width, dtype=np.int32), rows.shape)
    placed = devices.put((rows, index, Segments(ones, ones)), policy.mesh, "batch")
    found = np.asarray(devices.fetch(logits(policy.config, policy.params, *placed)), np.float64)
    found = found / policy.temperature
    found -= np.log(np.exp(found).sum(axis=-1, keepdims=True))
    return np.asarray(
        [
            sum(found[n, len(prompt) - 1 + place, token] for place, token in enumerate(response))
            for n, response in enumerate(responses)
        ]
    )


def mixed(teacher: Teacher, responses: list[np.ndarray]) -> np.ndarray:
    """The teacher's probability of each response: the sum over its personas."""
    return np.sum(
        [
            persona.share
            * np.exp(
                enumerated(
                    teacher.policy,
                    [{"role": "system", "content": persona.system}, *ASKED],
                    responses,
                )
            )
            for persona in PERSONAS
        ],
        axis=0,
    )


def test_log_probabilities_are_those_of_the_enumeration(world: World) -> None:
    np.testing.assert_allclose(world.log_q, np.log(world.q), atol=CLOSE)
    # the responses are all that can happen, cut ones included
    assert np.exp(world.log_q).sum() == pytest.approx(1, abs=CLOSE)
    assert np.ptp(world.log_q) > 3  # and far from uniform


def test_the_mixture_is_that_of_the_enumeration(world: World) -> None:
    np.testing.assert_allclose(mixture.log_mixture(world.joint), np.log(world.p), atol=CLOSE)
    assert world.p.sum() == pytest.approx(1)
    # Over all responses, the posterior shares of the personas are their shares.
    shares = world.p @ mixture.posterior(world.joint)
    np.testing.assert_allclose(shares, [0.7, 0.3], atol=CLOSE)


def answers(teacher: Teacher, responses: Any) -> measures.Answers:
    joint = teacher.joint([ASKED] * len(responses), responses)
    finished = np.ones(joint.shape[:2], bool)
    # features of noise, of four prompts or more
    features = np.random.default_rng(0).normal(size=(*joint.shape[:2], 2))
    return measures.Answers(measures.lengths(responses), finished, joint, features)


def test_both_kls_are_those_of_the_enumeration(world: World) -> None:
    """Exactly, with every response in its share; and on average, with responses that are drawn."""
    p, q, log_q = world.p, world.q, world.log_q
    reverse, forward = float(q @ np.log(q / p)), float(p @ np.log(p / q))
    assert reverse > 0.2
    assert forward > 0.2
    log_p = mixture.log_mixture(world.joint)
    assert q @ (log_q - log_p) == pytest.approx(reverse, abs=CLOSE)
    assert p @ (log_p - log_q) == pytest.approx(forward, abs=CLOSE)

    # four times the same question: 4 × 256 samples
    many, numbers = world.student.encode([ASKED] * 4), range(4)
    drawn = world.student.sample(many, numbers, 256, jax.random.key(5))
    again = world.student.log_probabilities(many, drawn.tokens)
    np.testing.assert_allclose(drawn.logprobs, again, atol=CLOSE)  # over a cache, and packed
    taught = world.teacher.draw([ASKED] * 1024, range(1024), jax.random.key(6))
    groups = [[one.tokens for one in taught[n::4]] for n in range(4)]
    found = measures.of_student(
        answers(world.teacher, drawn.tokens),
        answers(world.teacher, groups),
        drawn.logprobs,
        world.student.log_probabilities(many, groups),
    )
    for name, exact, weight, ratio in (
        ("reverse_kl", reverse, q, log_q - log_p),
        ("forward_kl", forward, p, log_p - log_q),
    ):
        error = np.sqrt(weight @ (ratio - exact) ** 2 / 1024)  # the exact standard error
        assert np.mean(found[name]) == pytest.approx(exact, abs=4 * error)
    cut = np.asarray(
        [response[-1] not in world.student.chat.end_tokens for response in world.responses]
    )
    assert 0.05 < q[cut].sum() < 0.95  # responses of both kinds count
    assert np.mean(~drawn.finished) == pytest.approx(q[cut].sum(), abs=4 * 0.5 / 1024**0.5)
    personas = np.bincount([one.persona for one in taught], minlength=2) / 1024
    assert personas == pytest.approx([0.7, 0.3], abs=4 * 0.5 / 1024**0.5)


def test_what_is_drawn_does_not_depend_on_its_neighbours(world: World) -> None:
    asked = [[{"role": "user", "content": f"why {word}"}] for word in WORDS]
    key = jax.random.key(1)
    together = world.teacher.draw(asked, range(6), key)
    alone = world.teacher.draw(asked[4:], [4, 5], key)
    for one, other in zip(together[4:], alone, strict=True):
        assert one.persona == other.persona
        np.testing.assert_array_equal(one.tokens, other.tokens)
    other = world.teacher.draw(asked, range(6), jax.random.key(2))
    assert [x.tokens.tolist() for x in together] != [x.tokens.tolist() for x in other]


def test_hidden_means_are_those_of_one_row(world: World) -> None:
    asked = [[{"role": "user", "content": "why " * n}] for n in range(1, 10)]
    prompts = world.student.encode(asked)
    responses = [[np.asarray([3, 4], np.int32), np.asarray([1], np.int32)] for _ in asked]
    found = world.student.hidden_means(prompts, responses)
    config: DecoderConfig = world.student.config
    row = np.asarray([[*prompts[8], 3, 4]], np.int32)
    index, ones = np.arange(row.size, dtype=np.int32)[None], np.ones_like(row)
    placed = devices.put((row, index, Segments(ones, ones)), world.student.mesh, "batch")
    hidden, _ = decoder.hidden(config, world.student.params, *placed)
    # the states that 3 and 4 follow from
    expected = np.asarray(devices.fetch(hidden))[0, len(prompts[8]) - 1 : -1].mean(axis=0)
    np.testing.assert_allclose(found[8, 0], expected, atol=CLOSE)
    assert found.shape == (9, 2, config.width)

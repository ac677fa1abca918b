"""Packed rows against rows of one response: scores, log-probs and entropies."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gad_jax.core import forward
from tests.core.builders import (
    DISCRIMINATOR,
    GENERATOR,
    PROMPTS,
    SAMPLES,
    first,
    networks,
    put,
    rows,
    texts,
)
from tests.core.by_hand import all_scores_by_hand, alone, logprobs_by_hand


@functools.cache
def packed_scores() -> Callable[..., Any]:
    return jax.jit(lambda params, x: forward.response_scores(DISCRIMINATOR, params, x))


def test_packed_logprobs_and_entropies_are_those_of_each_response_alone() -> None:
    params = put(networks()[0])
    packed, x = first(rows(texts(), "samples")), alone(texts(), "samples")
    packed_logprobs = jax.jit(lambda *a: forward.response_logprobs(GENERATOR, *a, 0.8, 16))
    found = packed_logprobs(params, packed)
    wanted = logprobs_by_hand(params, x)
    for one, other in zip(found, wanted, strict=True):
        for sequence in range(PROMPTS * SAMPLES):
            mine = packed.mask & (packed.sequences == sequence)
            # Attention sums over other columns, in another order.
            np.testing.assert_allclose(one[mine], other[sequence][x.mask[sequence]], atol=1e-5)


def test_packed_scores_are_those_of_each_response_alone() -> None:
    packed = rows(texts(), "pairs")
    found = np.asarray(packed_scores()(put(networks()[2]), first(packed)))
    teacher, samples = all_scores_by_hand()
    order = np.asarray(packed.groups[0])
    np.testing.assert_allclose(found[:, 1:], samples[order], atol=1e-5)
    np.testing.assert_allclose(found[:, :1] + np.zeros(SAMPLES), teacher[order], atol=1e-5)


def test_identical_ids_get_identical_scores() -> None:
    """The teacher's text, sampled by the student, is no better and no worse for its place."""
    same = texts()
    same = same._replace(responses=[[group[0]] * (SAMPLES + 1) for group in same.responses])
    found = np.asarray(packed_scores()(put(networks()[2]), first(rows(same))))
    np.testing.assert_allclose(found - found[:, :1], np.zeros_like(found), atol=2e-6)

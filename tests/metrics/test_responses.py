"""Lengths, cuts and repetition of responses, by hand."""

import math

import numpy as np
import pytest

from gad_jax.metrics.responses import repetition, response_metrics


def test_response_metrics_by_hand() -> None:
    cut = [[False, True], [False, False]]
    found = response_metrics([[2, 1], [1, 8]], cut, [4, 2], [True, False])
    assert found == {
        "response/length": 3.0,
        "response/length_p95": pytest.approx(7.1),
        "response/cut_share": 0.25,
        "response/teacher_cut_share": 0.5,
        "response/empty_share": 0.25,  # one that is cut after a token is not empty
        "response/length_ratio": 1.0,
    }
    assert math.isnan(response_metrics([1], [False], [0], [False])["response/length_ratio"])


def test_repetition_by_hand() -> None:
    assert repetition([np.asarray([1, 2, 3, 4, 5, 1, 2, 3, 4])]) == pytest.approx(1 / 6)
    assert repetition([np.arange(10), np.arange(10)]) == 0  # of another response
    assert repetition([np.zeros(13, np.int32)]) == pytest.approx(0.9)
    # What lies across the border of two responses is no 4-gram.
    assert repetition([np.asarray([1, 2]), np.asarray([1, 2]), np.asarray([1, 2])]) == 0
    assert repetition([np.asarray([7])]) == 0
    loop, prose = np.tile(np.arange(4), 5), np.arange(100, 120)
    assert repetition([loop, prose]) == pytest.approx(13 / 34)
    big = np.random.default_rng(0).integers(0, 150_000, (64, 1536))
    assert repetition(list(big)) == 0

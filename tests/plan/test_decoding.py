"""The simulated decode loop, by hand; rollout/test_engine.py compares it with real loops."""

import numpy as np

from gad_jax.plan import decoding
from gad_jax.rollout.engine import DecodeCall


def test_one_response() -> None:
    assert decoding.decode_calls(np.array([5]), np.array([[7]]), 1, 8) == (DecodeCall(1, 64, 7),)


def test_one_size_is_the_longest_sequence() -> None:
    asked, answered = np.array([5, 90]), np.array([[7], [20]])
    for longest, capacity in ((0, 128), (150, 150)):
        [call] = decoding.decode_calls(asked, answered, 1, 1, longest, resizes=False)
        assert call == DecodeCall(1, capacity, 27)

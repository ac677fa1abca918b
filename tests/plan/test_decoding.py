"""The simulated decode loop, by hand; rollout/test_engine.py compares it with real loops."""

import numpy as np

from gad_jax.plan import decoding
from gad_jax.rollout.engine import DecodeCall


def test_one_response() -> None:
    assert decoding.decode_calls(np.array([5]), np.array([[7]]), 1, 8) == (DecodeCall(1, 64, 7),)

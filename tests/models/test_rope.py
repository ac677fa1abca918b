"""Rotary positions by hand."""

import jax.numpy as jnp
import numpy as np

from gad_jax.models.config import Llama3, Rope
from gad_jax.models.rope import rotate, rotation


def test_rotary_angles_by_hand() -> None:
    # frequencies 100^0 = 1 and 100^(-1/2) = 0.1
    cos, sin = rotation(Rope(100.0), 4, jnp.asarray([0, 1, 5]))
    angles = np.array([[0, 0], [1, 0.1], [5, 0.5]])
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-6)  # float32
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-6)
    # wavelengths 2π and 20π; from 64 positions, kept above 16 and divided by 8 below 64 / 1:
    # the first is kept (10.2 turns ≥ 4), the second interpolated (1.0186 turns)
    smooth = (64 / (20 * np.pi) - 1) / (4 - 1)
    cos, _ = rotation(Rope(100.0, Llama3(8.0, 1.0, 4.0, 64)), 4, jnp.asarray([1]))
    second = 0.1 * (smooth + (1 - smooth) / 8)
    np.testing.assert_allclose(cos, [np.cos([1.0, second])], atol=1e-6)


def test_a_rotation_turns_halves_of_a_head() -> None:
    quarter = (jnp.zeros((1, 2)), jnp.ones((1, 2)))  # cosine 0, sine 1
    turned = rotate(jnp.asarray([[[1.0, 2.0, 3.0, 4.0]]]), quarter)
    assert turned.tolist() == [[[-3.0, -4.0, 1.0, 2.0]]]

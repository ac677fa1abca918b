"""Rows of one sequence each, and how near two float32 networks are."""

import jax
import jax.numpy as jnp
import numpy as np

from gad_jax.models import decoder
from gad_jax.types import Segments

# Float32 sums in another order, through two layers, and angles of up to 48 radians: logits of
# magnitude 1 differ by about 2e-6. A wrong epsilon, mask or head order moves them by 1e-3 or more.
PARITY = 1e-4

Rows = tuple[jax.Array, jax.Array, Segments]

logits = jax.jit(decoder.logits, static_argnums=0)


def rows(ids: np.ndarray, shift: int = 0, stretch: int = 1) -> Rows:
    """Returns tokens, positions and segments of rows that hold one sequence each."""
    positions = np.broadcast_to(shift + stretch * np.arange(ids.shape[1]), ids.shape)
    one = np.ones_like(ids)
    return jax.tree.map(jnp.asarray, (ids, positions, Segments(one, one)))

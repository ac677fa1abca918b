"""Matmuls of few tokens on a CPU: the kernel comes first, and its rows are in one piece.

XLA's matmul for CPUs packs both operands anew in each call. With the kernel stored as [out, in]
and first among the operands, it takes a quarter to three quarters of the time for 4 to 32 rows
(docs/performance.md). Decoding has so few of them, one per slot. The decode copy holds such
kernels (`joined.join`), and the vocabulary's of a CPU (`rollout/prefill.py`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gad_jax.distributed import devices, sharding

_MANY = 64
"""From this many rows, XLA divides either order over the cores of a CPU, and the usual one is as
fast or faster."""


def product(
    x: Float[Array, "n in"], kernel: Float[Array, "*out in"], *axes: str | None
) -> Float[Array, "n ..."]:
    """Returns the sums over the inputs, [n *out]; `axes` are the logical axes of the outputs."""
    if x.shape[0] >= _MANY and devices.platform() == "cpu":
        return jnp.einsum("nd,...d->n...", x, kernel, out_sharding=sharding.spec("batch", *axes))
    y = jnp.einsum("...d,nd->...n", kernel, x, out_sharding=sharding.spec(*axes, "batch"))
    # The barrier keeps XLA from folding the transposition back into the matmul.
    return jnp.moveaxis(jax.lax.optimization_barrier(y), -1, 0)

"""Matmuls of few tokens on a CPU: the kernel comes first, and its rows are in one piece.

XLA's matmul for CPUs packs both operands anew in each call. With the kernel stored as [out, in]
and first among the operands, it takes half to a quarter of the time of x @ kernel for 2 to 48 rows
(docs/performance.md). Decoding has so few of them, one per slot. The decode copy holds such
kernels (`joined.join`), and the vocabulary's of a CPU (`rollout/prefill.py`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gad_jax.distributed import devices, sharding

_MANY = 64
"""From this many rows on a CPU's cores share the work in either order, and the usual one is
faster."""


def product(
    x: Float[Array, "n in"], kernel: Float[Array, "*out in"], *axes: str | None
) -> Float[Array, "n ..."]:
    """Returns the sums over the inputs, [n *out]; `axes` are the logical axes of the outputs."""
    if x.shape[0] >= _MANY and devices.platform() == "cpu":
        return jnp.einsum("nd,...d->n...", x, kernel, out_sharding=sharding.spec("batch", *axes))
    y = jnp.einsum("...d,nd->...n", kernel, x, out_sharding=sharding.spec(*axes, "batch"))
    # The barrier keeps XLA from folding the transposition back into the matmul.
    return jnp.moveaxis(jax.lax.optimization_barrier(y), -1, 0)

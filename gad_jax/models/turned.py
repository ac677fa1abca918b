"""Matmuls of few tokens on a CPU: the kernel comes first, and its rows are in one piece.

XLA's matmul for CPUs packs both operands anew in each call. With the kernel stored as [out, in]
and first among the operands, it takes a quarter to three quarters of the time for 4 to 32 rows
(docs/performance.md). Decoding has so few of them, one per slot. The decode copy holds such
kernels (`joined.join`), and the vocabulary's of a CPU (`rollout/prefill.py`).

A kernel may be in bfloat16 where x is float32. Then x is rounded too, and the products are summed
in float32. That is what processors with such instructions compute, and it reads half the bytes.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gad_jax.distributed import devices, sharding

_MANY = 64
"""From this many rows, XLA divides either order over the cores of a CPU, and the usual one is as
fast or faster."""

_FEWEST = 2
"""XLA has no bfloat16 kernel for CPUs that takes one row. It would take ten times as long."""


def product(
    x: Float[Array, "n in"], kernel: Float[Array, "*out in"], *axes: str | None
) -> Float[Array, "n ..."]:
    """Returns the sums over the inputs, [n *out], in the dtype of x; `axes` are the logical axes of
    the outputs."""
    if kernel.dtype != x.dtype:
        return _of_half(x, kernel, *axes)
    if x.shape[0] >= _MANY and devices.platform() == "cpu":
        return jnp.einsum("nd,...d->n...", x, kernel, out_sharding=sharding.spec("batch", *axes))
    return _kernel_first(x, kernel, *axes)


def _of_half(
    x: Float[Array, "n in"], kernel: Float[Array, "*out in"], *axes: str | None
) -> Float[Array, "n ..."]:
    """Returns `product` of a kernel in another dtype than x, which is rounded to that."""
    few = max(_FEWEST - x.shape[0], 0)
    rows = jnp.pad(x.astype(kernel.dtype), ((0, few), (0, 0)))
    return _kernel_first(rows, kernel, *axes, dtype=x.dtype)[: x.shape[0]]


def _kernel_first(
    x: Float[Array, "n in"],
    kernel: Float[Array, "*out in"],
    *axes: str | None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n ..."]:
    out = sharding.spec(*axes, "batch")
    y = jnp.einsum("...d,nd->...n", kernel, x, preferred_element_type=dtype, out_sharding=out)
    # The barrier keeps XLA from folding the transposition back into the matmul.
    return jnp.moveaxis(jax.lax.optimization_barrier(y), -1, 0)

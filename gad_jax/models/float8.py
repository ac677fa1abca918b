"""Matmuls of 8-bit floats, with one scale per array: of a projection, and of both its gradients.

An array is divided by what brings its largest magnitude near that of its dtype, and rounded:

    y  = x W     x, W  e4m3   3 bits of mantissa, up to 448
    dx = dy Wᵀ   dy    e5m2   2 bits of mantissa, up to 57344
    dW = xᵀ dy

Scales are of the arrays themselves ("current scaling"), not of those of earlier steps, so there is
no state. Sums are float32.

Scales are no powers of two. Of weights that come from bfloat16, one in sixteen would then be
halfway between two codes. The first update, however small, would move all of those by half a code,
the way that the gradient says: the loss would fall, and the weights to export hardly have moved.

The matmuls take codes. Where codes were cast to wider numbers before a matmul, as
`flax.linen.fp8_ops.Fp8DotGeneralOp` has it, XLA (jaxlib 0.11.2) would drop both casts wherever its
Triton kernels take the matmul, and compute in bfloat16 what was to be rounded.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gad_jax.distributed import sharding

_FORWARD, _GRADIENT = jnp.float8_e4m3fn, jnp.float8_e5m2
_TOP = 0.987
"""Where the largest magnitude goes, of that of the dtype. Not 1: it has few bits itself, so others
would often be halfway between codes, too."""

_BOUND = 2.0**80
"""Of scales: a product times one of them is a number of float32."""


class _Codes(NamedTuple):
    """An array of 8-bit floats, and the number that they are multiplied by."""

    codes: Array
    scale: Float[Array, ""]


def matmul(
    x: Float[Array, "n in"], kernel: Float[Array, "in out"], out: P | None
) -> Float[Array, "n out"]:
    """Returns x @ kernel in the dtype of x, laid out as the spec `out` says (None: as jax chooses).
    Kernel and gradients have that dtype too."""
    product: Any = _matmul(x, kernel, out)  # annotated in jax as if it could be anything
    return product


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, kernel: Array, out: P | None) -> Array:
    """`matmul` with its own gradient."""
    return _forward(x, kernel, out)[0]


def _forward(x: Array, kernel: Array, out: P | None) -> tuple[Array, tuple[_Codes, _Codes]]:
    left, right = _rounded(x, _FORWARD), _rounded(kernel, _FORWARD)
    return _product("nd,df->nf", left, right, x.dtype, out), (left, right)


def _backward(out: P | None, codes: tuple[_Codes, _Codes], slopes: Array) -> tuple[Array, Array]:
    del out
    left, right = codes
    above = _rounded(slopes, _GRADIENT)
    # As in flax and Transformer Engine: gradients are summed with all bits of float32.
    exact = partial(_product, dtype=slopes.dtype, precision=jax.lax.Precision.HIGHEST)
    return (
        exact("nf,df->nd", above, right, out=sharding.spec_of(left.codes)),
        exact("nd,nf->df", left, above, out=sharding.spec_of(right.codes)),
    )


_matmul.defvjp(_forward, _backward)


def _rounded(x: Array, dtype: DTypeLike) -> _Codes:
    """Returns x in 8 bits; what is not finite stays so."""
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    top = _TOP * float(jnp.finfo(dtype).max)
    scale = jnp.clip(largest / top, 1 / _BOUND, _BOUND)
    return _Codes((x.astype(jnp.float32) * (1 / scale)).astype(dtype), scale)


def _product(
    subscripts: str,
    left: _Codes,
    right: _Codes,
    dtype: DTypeLike,
    out: P | None,
    precision: jax.lax.Precision = jax.lax.Precision.DEFAULT,
) -> Array:
    product = jnp.einsum(
        subscripts,
        left.codes,
        right.codes,
        precision=precision,
        preferred_element_type=dtype,
        out_sharding=out,
    )
    return (product.astype(jnp.float32) * left.scale * right.scale).astype(dtype)

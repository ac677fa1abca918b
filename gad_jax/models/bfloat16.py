"""Matmuls of bfloat16 numbers with float32 sums, for CPUs: of a projection, and of its gradients.

    y = x W    dx = dy Wᵀ    dW = xᵀ dy

x, W and dy are rounded to bfloat16. What comes out is float32, and so is all between the matmuls.
Processors with AMX or AVX512-BF16 compute such products several times as fast as those of float32
(docs/performance.md).

XLA (jaxlib 0.10) has kernels for them where the result is float32 and the summed axis is the last
of the first operand. For others it widens both operands. So dW has to be written with care, in
`outer`. Where XLA folds a transposition into a matmul that it has not widened, the program fails
when it runs. Barriers around the matmuls keep it from that.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gad_jax.distributed import sharding


def matmul(
    x: Float[Array, "n in"],
    kernel: Float[Array, "in out"] | Float[Array, "out in"],
    out: P | None,
    is_turned: bool = False,
) -> Float[Array, "n out"]:
    """Returns x @ kernel in the dtype of x, laid out as the spec `out` says (None: as jax chooses).

    A kernel that is turned is [out in]. The kernel's gradient has the dtype of the kernel.
    """
    product: Any = _matmul(x, kernel, out, is_turned)  # annotated in jax as if it could be anything
    return product


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(x: Array, kernel: Array, out: P | None, is_turned: bool) -> Array:
    """`matmul` with its own gradient."""
    return _forward(x, kernel, out, is_turned)[0]


def _forward(x: Array, kernel: Array, out: P | None, is_turned: bool) -> tuple[Array, Any]:
    y = _product("nd,fd->nf" if is_turned else "nd,df->nf", x, kernel, x.dtype, out)
    # The kernel is kept as it came: it is there anyway, and a rounded one would be one more.
    return y, (x.astype(jnp.bfloat16), kernel)


def _backward(
    out: P | None, is_turned: bool, residuals: tuple[Array, Array], slopes: Array
) -> tuple[Array, Array]:
    del out
    x, kernel = residuals
    subscripts = "nf,fd->nd" if is_turned else "nf,df->nd"
    of_x = _product(subscripts, slopes, kernel, slopes.dtype, sharding.spec_of(x))
    both = (slopes, x) if is_turned else (x, slopes)
    return of_x, outer(*both, sharding.spec_of(kernel)).astype(kernel.dtype)


_matmul.defvjp(_forward, _backward)


def outer(
    left: Float[Array, "n a"], right: Float[Array, "n b"], out: P | None
) -> Float[Array, "a b"]:
    """Returns the sum over n of left · right, of bfloat16 numbers in float32.

    XLA transposes the first operand, and on the way it computes whatever that comes from, number by
    number: where that is an exponential, it takes longer than the matmul. So a `left` that is wide
    comes second, and the result is transposed.
    """
    (rows, a), b = left.shape, right.shape[1]
    if a <= b + a * b // rows:
        return _outer(left, right, out)
    return _outer(right, left, None if out is None else P(*reversed(out))).T


def _outer(left: Array, right: Array, out: P | None) -> Array:
    if left.shape[0] // sharding.parts(left, slice(1)) % 2:  # of the rows on a device
        return _product("na,nb->ab", left, right, jnp.float32, out)
    # Only with two summed axes XLA transposes bfloat16; with one it widens both operands.
    return _product("npa,npb->ab", _paired(left), _paired(right), jnp.float32, out)


def _paired(x: Float[Array, "n a"]) -> Float[Array, "n/2 2 a"]:
    spec = sharding.spec_of(x)
    out = None if spec is None else P(spec[0], None, spec[1])
    return x.reshape(x.shape[0] // 2, 2, x.shape[1], out_sharding=out)


def _product(subscripts: str, x: Array, y: Array, dtype: DTypeLike, out: P | None) -> Array:
    rounded = jax.lax.optimization_barrier((x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)))
    product = jnp.einsum(subscripts, *rounded, preferred_element_type=jnp.float32, out_sharding=out)
    return jax.lax.optimization_barrier(product).astype(dtype)

"""The best rates of this machine, measured now: the denominators of the benchmarks' ratios."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Ceilings(NamedTuple):
    """Rates of one device: FLOP/s of a large matmul, and bytes per second of reading memory."""

    flops_per_second: float
    bytes_per_second: float


def measure(dtype: str = "float32", seconds: float = 1.0) -> Ceilings:
    """Returns the best rates seen in about `seconds` for each."""
    # Filled by the device; zeros would let a CPU read one page again and again.
    count = 2**27 if jax.default_backend() == "cpu" else 2**30
    array = jnp.arange(count, dtype=jnp.float32)
    add_up = jax.jit(jnp.sum)
    return Ceilings(
        flops_per_second(dtype, seconds),
        array.nbytes / min(times(lambda: add_up(array), seconds)),
    )


def flops_per_second(dtype: str = "float32", seconds: float = 1.0) -> float:
    """Returns the best rate of a large matmul that is seen in about `seconds`."""
    multiply, flops = matmul(dtype)
    return flops / min(times(multiply, seconds))


def matmul(dtype: str) -> tuple[Callable[[], jax.Array], float]:
    """Returns a function that computes a large matmul, and the FLOPs of a call."""
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    square = jax.random.normal(jax.random.key(0), (size, size), dtype)
    # A CPU has matmuls of bfloat16 that sum in float32, if any.
    kind = jnp.float32 if on_cpu else None
    multiply = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=kind))
    return lambda: multiply(square), 2.0 * size**3


def times(function: Callable[[], jax.Array], budget: float) -> list[float]:
    """Returns the seconds of calls, after an untimed first one.

    There are at least three, and as many as fit into `budget` seconds.
    """
    jax.block_until_ready(function())
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < budget:
        started = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - started)
    return taken

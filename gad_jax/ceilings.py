"""What this machine can do at best, measured now: the denominators of every ratio."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Ceilings(NamedTuple):
    """Rates of one device: of a large matrix product, and of reading memory."""

    flops_per_second: float
    bytes_per_second: float


def measure(dtype: str = "float32", seconds: float = 1.0) -> Ceilings:
    """Returns the best rates seen in about `seconds` for each."""
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    # Filled by the device; zeros would let a CPU read one page again and again.
    square = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = best_seconds(jax.jit(lambda a: a @ a), square, budget=seconds)
    array = jax.random.normal(jax.random.key(1), ((2**27 if on_cpu else 2**30),), jnp.float32)
    read = best_seconds(jax.jit(jnp.sum), array, budget=seconds)
    return Ceilings(2 * size**3 / product, array.nbytes / read)


def best_seconds(function: Callable[..., jax.Array], *arguments: jax.Array, budget: float) -> float:
    """Returns the least seconds of a call, of at least three and as many as fit into `budget`."""
    jax.block_until_ready(function(*arguments))
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return min(times)

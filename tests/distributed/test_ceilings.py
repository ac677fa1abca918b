"""The best rates of this machine: how often they are measured, and of what."""

import time

import jax

from gad_jax.distributed import ceilings


def test_calls_are_timed_at_least_three_times_and_until_the_budget_is_used() -> None:
    calls = []

    def wait() -> jax.Array:
        calls.append(None)
        time.sleep(0.01)
        return jax.numpy.zeros(())

    assert len(ceilings.times(wait, 0.0)) == 3
    assert len(calls) == 4  # the first call, which may compile, does not count
    taken = ceilings.times(wait, 0.1)
    assert sum(taken) >= 0.1
    assert sum(taken[:-1]) < 0.1 or len(taken) == 3


def test_a_matmul_has_two_operations_per_multiplication() -> None:
    multiply, flops = ceilings.matmul("float32")
    rows, columns = multiply().shape
    assert flops == 2 * rows * columns * columns

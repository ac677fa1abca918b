"""Matmuls with turned kernels: the numbers of the usual order, whatever the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.models import turned

FEW, MANY = 5, 70


@pytest.mark.parametrize("rows", [1, FEW, MANY])
@pytest.mark.parametrize("outputs", [(24,), (2, 12)])
def test_the_products_are_those_of_the_usual_order(rows: int, outputs: tuple[int, ...]) -> None:
    x = jax.random.normal(jax.random.key(0), (rows, 16))
    kernel = jax.random.normal(jax.random.key(1), (*outputs, 16))
    found = turned.product(x, kernel, *(None for _ in outputs))
    assert found.shape == (rows, *outputs)
    wanted = np.einsum("nd,...d->n...", np.asarray(x, float), np.asarray(kernel, float))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("rows", [1, FEW, MANY])
@pytest.mark.parametrize("outputs", [(24,), (2, 12)])
def test_a_kernel_in_bfloat16_rounds_x_and_sums_in_float32(
    rows: int, outputs: tuple[int, ...]
) -> None:
    x = jax.random.normal(jax.random.key(0), (rows, 16))
    kernel = jax.random.normal(jax.random.key(1), (*outputs, 16)).astype(jnp.bfloat16)
    found = turned.product(x, kernel, *(None for _ in outputs))
    assert found.shape == (rows, *outputs)
    assert found.dtype == jnp.float32
    rounded = np.asarray(x.astype(jnp.bfloat16), float)
    wanted = np.einsum("nd,...d->n...", rounded, np.asarray(kernel, float))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(("rows", "first"), [(FEW, "kernel"), (MANY, "x")])
def test_the_kernel_comes_first_for_few_rows_alone(rows: int, first: str) -> None:
    """XLA keeps the order: what is compiled has the kernel's outputs, or the rows, first."""
    x, kernel = jnp.zeros((rows, 16)), jnp.zeros((24, 16))
    program = jax.jit(lambda x, kernel: turned.product(x, kernel, None)).lower(x, kernel).compile()
    shape = {"kernel": f"f32[24,{rows}]", "x": f"f32[{rows},24]"}[first]
    dots = [line for line in program.as_text().splitlines() if " dot(" in line]
    assert dots
    assert all(f" = {shape}" in line for line in dots)

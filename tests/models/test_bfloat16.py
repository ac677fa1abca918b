"""Matmuls of bfloat16 numbers with float32 sums: what is rounded, and networks that use them."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.distributed import devices
from gad_jax.models import bfloat16, decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Params
from tests.models.test_adapters import logits, network
from tests.models.test_float8 import assert_a_mesh_agrees, assert_adapters_learn, rows, wanted

SHAPES = {"wide to narrow": (48, 64, 16), "narrow to wide": (48, 16, 64), "odd": (47, 64, 16)}
"""Rows, inputs and outputs. The first one's gradient is computed the other way round, and the last
one's rows make no pairs."""


def arrays(rows: int, width_in: int, width_out: int) -> tuple[np.ndarray, ...]:
    """Returns x, a kernel, and the gradient of their product."""
    random = np.random.default_rng(0)
    shapes = (rows, width_in), (width_in, width_out), (rows, width_out)
    return tuple(random.standard_normal(shape).astype("f") for shape in shapes)


@jax.jit(static_argnames="is_turned")
def products(
    x: jax.Array, kernel: jax.Array, slopes: jax.Array, is_turned: bool
) -> dict[str, jax.Array]:
    """Returns what `bfloat16.matmul` computes: the product and both gradients."""

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return bfloat16.matmul(x, kernel.T if is_turned else kernel, None, is_turned)

    y, pull = jax.vjp(product, x, kernel)
    of_x, of_kernel = pull(slopes)
    return {"product": y, "of x": of_x, "of kernel": of_kernel}


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_operands_alone_are_rounded(shape: str, is_turned: bool) -> None:
    given = arrays(*SHAPES[shape])
    rounded = (np.asarray(jnp.asarray(x, jnp.bfloat16)).astype(np.float64) for x in given)
    exact, whole = wanted(*rounded), wanted(*given)
    for name, found in products(*given, is_turned).items():
        assert found.dtype == jnp.float32
        size = np.abs(exact[name]).max()
        np.testing.assert_allclose(found, exact[name], rtol=1e-5, atol=1e-6 * size, err_msg=name)
        assert np.abs(found - whole[name]).max() > 1e-4 * size  # rounded after all


@pytest.mark.skipif(
    devices.platform() == "cpu" and not devices.cpu_multiplies_bfloat16(),
    reason="XLA may widen them where the processor has no instructions for bfloat16",
)
@pytest.mark.parametrize("shape", ["wide to narrow", "narrow to wide"])
def test_no_operand_is_widened(shape: str) -> None:
    given = arrays(*(8 * size for size in SHAPES[shape]))

    def gradients(x: jax.Array, kernel: jax.Array, slopes: jax.Array) -> Any:
        halved = (each.astype(jnp.bfloat16) for each in (x, kernel))
        product = jax.vjp(lambda x, kernel: bfloat16.matmul(x, kernel, None), *halved)
        return product[0], product[1](slopes.astype(jnp.bfloat16))

    halves = [jnp.asarray(each, jnp.bfloat16) for each in given]
    text = jax.jit(gradients).lower(*halves).compile().as_text()
    assert text is not None
    assert not re.search(r"f32\S* convert\(bf16", text), text


# Networks


def in_bfloat16(config: DecoderConfig) -> DecoderConfig:
    return dataclasses.replace(config, matmul="bfloat16")


def whole_network() -> tuple[DecoderConfig, Params]:
    config = dataclasses.replace(network("qwen2-window")[0], lora=None)
    return config, decoder.init(config, jax.random.key(0))


def test_matmuls_of_layers_and_head_take_bfloat16() -> None:
    config, params = whole_network()
    config = in_bfloat16(dataclasses.replace(config, remat="none"))

    def loss(params: Params) -> jax.Array:
        return jnp.sum(decoder.logits(config, params, *rows()) ** 2)

    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    dots = re.findall(
        r"dot_general .*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\) -> tensor<\S*x(\w+)>", text
    )
    # The scan's body stands once in the text: seven products, two gradients of each; and the head.
    assert dots.count(("bf16", "bf16", "f32")) == 3 * 7 + 3
    assert {dot for dot in dots if "bf16" in dot} == {("bf16", "bf16", "f32")}


def test_a_backward_pass_computes_no_matmul_again_that_is_saved() -> None:
    counts = []
    for matmul in ("auto", "bfloat16"):
        config, params = whole_network()
        config = dataclasses.replace(config, remat="dots", matmul=matmul)

        def loss(params: Params, config: DecoderConfig = config) -> jax.Array:
            return jnp.sum(decoder.hidden(config, params, *rows())[0] ** 2)

        counts.append(jax.jit(jax.grad(loss)).lower(params).as_text().count("dot_general"))
    assert counts[0] == counts[1]


def test_logits_move_and_sampling_computes_as_before() -> None:
    config, params = whole_network()
    before, after = logits(config, params), logits(in_bfloat16(config), params)
    off = np.std(after - before) / np.std(before)
    assert 1e-4 < off < 0.01
    assert in_bfloat16(config).decoding == config.decoding
    assert in_bfloat16(config).merged == config.merged


def test_adapters_learn_on_a_base_whose_matmuls_are_rounded() -> None:
    assert_adapters_learn("bfloat16", error=0.03)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_on_a_mesh_computes_what_one_device_does(micro_batches: int) -> None:
    assert_a_mesh_agrees("bfloat16", micro_batches, loss=2e-3, gradient=0.01)

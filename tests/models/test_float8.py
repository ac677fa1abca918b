"""Matmuls of 8-bit floats: their error, what is rounded, and networks that compute with them."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core import steps
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import adapters, decoder, float8
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import prefill
from gad_jax.types import Params, Segments
from tests.core import builders
from tests.models.test_adapters import learnt, logits, network

# A number keeps 3 or 2 bits of mantissa, so it moves by at most 1/16 or 1/8 of itself. Below the
# normal numbers it moves by half of the smallest one: 2⁻¹⁰ or 2⁻¹⁷, where the largest is
# above 400 or 50000.
RELATIVE = {"e4m3": 2**-4, "e5m2": 2**-3}
OF_LARGEST = {"e4m3": 2**-17, "e5m2": 2**-31}
DTYPES = {"e4m3": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2}


def arrays(spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns x, a kernel, and the gradient of their product; sizes within each differ widely."""
    random = np.random.default_rng(0)
    shapes = (48, 64), (64, 32), (48, 32)
    return tuple(
        (random.standard_normal(shape) * np.exp(spread * random.standard_normal(shape))).astype("f")
        for shape in shapes
    )  # pyright: ignore[reportReturnType]


def products(x: np.ndarray, kernel: np.ndarray, slopes: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what `float8.matmul` computes, compiled: the product and both gradients."""

    @jax.jit
    def all_three(x: jax.Array, kernel: jax.Array, slopes: jax.Array) -> dict[str, Any]:
        y, pull = jax.vjp(lambda x, kernel: float8.matmul(x, kernel, None), x, kernel)
        of_x, of_kernel = pull(slopes)
        return {"product": y, "of x": of_x, "of kernel": of_kernel}

    return jax.device_get(all_three(x, kernel, slopes))


def wanted(x: np.ndarray, kernel: np.ndarray, slopes: np.ndarray) -> dict[str, np.ndarray]:
    return {"product": x @ kernel, "of x": slopes @ kernel.T, "of kernel": x.T @ slopes}


def error(of: np.ndarray, kind: str) -> np.ndarray:
    """Returns how far each number may move."""
    return RELATIVE[kind] * np.abs(of) + OF_LARGEST[kind] * np.abs(of).max()


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_product_and_gradients_are_within_the_error_of_eight_bits(spread: float) -> None:
    given = arrays(spread)
    # |(a + δ)(b + ε) - ab| summed: with every number moved as far as it may, less the product.
    sizes = [np.abs(each).astype(np.float64) for each in given]
    moved = [
        size + error(each, kind)
        for size, each, kind in zip(sizes, given, ("e4m3", "e4m3", "e5m2"), strict=True)
    ]
    low, high = wanted(*sizes), wanted(*moved)
    exact = wanted(*(each.astype(np.float64) for each in given))
    for name, found in products(*given).items():
        off = np.abs(found - exact[name])
        assert (off <= (high[name] - low[name]) * (1 + 1e-5) + 1e-5 * low[name]).all(), name
        assert off.max() > 1e-3 * np.abs(exact[name]).max(), name  # rounded after all


def test_the_operands_alone_are_rounded_and_each_to_its_own_dtype() -> None:
    given = arrays()

    def rounded(x: np.ndarray, kind: str) -> np.ndarray:
        dtype = DTYPES[kind]
        scale = np.abs(x).max() / np.float32(0.987 * float(jnp.finfo(dtype).max))
        return np.asarray(jnp.asarray(x / scale).astype(dtype)).astype(np.float64) * scale

    codes = [rounded(*each) for each in zip(given, ("e4m3", "e4m3", "e5m2"), strict=True)]
    exact = wanted(*codes)
    for name, found in products(*given).items():
        np.testing.assert_allclose(
            found, exact[name], rtol=1e-5, atol=1e-5 * np.abs(exact[name]).max(), err_msg=name
        )


def test_powers_of_two_change_nothing_but_the_scale() -> None:
    given = arrays()
    before = products(*given)
    factors = 2.0**-30, 2.0**40, 2.0**-50
    after = products(*(each * np.float32(f) for each, f in zip(given, factors, strict=True)))
    x, kernel, slopes = factors
    for name, factor in {
        "product": x * kernel, "of x": slopes * kernel, "of kernel": x * slopes
    }.items():  # fmt: skip
        np.testing.assert_array_equal(after[name], before[name] * np.float32(factor))


def test_zeros_stay_zeros_and_what_is_not_finite_stays_so() -> None:
    x, kernel, slopes = arrays()
    for found in products(0 * x, kernel, 0 * slopes).values():
        assert not found.any()
    for broken in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[3, 5] = broken
        found = products(spoilt, kernel, slopes)
        assert not np.isfinite(found["product"][3]).any()
        assert not np.isfinite(found["of kernel"][5]).any()
        spoilt = slopes.copy()
        spoilt[3, 5] = broken
        found = products(x, kernel, spoilt)
        assert not np.isfinite(found["of x"][3]).any()
        assert not np.isfinite(found["of kernel"][:, 5]).any()


def test_weights_of_bfloat16_are_not_halfway_between_codes() -> None:
    """A tiny update moves few of them to another code, and not one in sixteen."""
    kernel = np.asarray(jnp.asarray(arrays(0.0)[1], jnp.bfloat16), np.float32)
    unit = np.eye(len(kernel), dtype=np.float32)

    def codes(kernel: np.ndarray) -> np.ndarray:
        return products(unit, kernel, kernel)["product"]

    largest = np.abs(kernel) == np.abs(kernel).max()  # stays, and the scale with it
    for sign in (1, -1):
        moved = np.where(largest, kernel, kernel * np.float32(1 + sign * 1e-6))
        assert np.mean(codes(moved) != codes(kernel)) < 0.001


def test_a_bfloat16_product_is_that_of_its_codes() -> None:
    given = tuple(jnp.asarray(each, jnp.bfloat16) for each in arrays())
    wide = products(*(np.asarray(each, np.float32) for each in given))
    for name, found in products(*given).items():  # pyright: ignore[reportArgumentType]
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype("f"), wide[name], rtol=2**-7, atol=1e-6)


# Networks


def in_float8(config: DecoderConfig) -> DecoderConfig:
    return dataclasses.replace(config, matmul="float8")


def rows() -> tuple[jax.Array, jax.Array, Segments]:
    places = jnp.arange(12)[None]
    return places, places, Segments(*(jnp.ones((1, 12), int),) * 2)


def test_a_networks_matmuls_take_codes_in_its_layers_alone() -> None:
    config, params = network("qwen2-window")
    config = in_float8(dataclasses.replace(config, lora=None, remat="none"))
    params = decoder.init(config, jax.random.key(0))

    def loss(params: Params) -> jax.Array:
        return jnp.sum(decoder.logits(config, params, *rows()) ** 2)

    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    dots = re.findall(r"dot_general .*: \(tensor<[^>]*x(\w+)>, tensor<[^>]*x(\w+)>\)", text)
    small = [pair for pair in dots if any(each.startswith("f8") for each in pair)]
    # The scan's body stands once in the text: seven products, and two gradients of each.
    assert small.count(("f8E4M3FN", "f8E4M3FN")) == 7
    assert sum("f8E5M2" in pair for pair in small) == 14
    assert all("f8E4M3FN" in pair for pair in small)
    assert len(small) == 21
    assert ("f32", "f32") in dots  # the head's


def test_logits_move_and_sampling_computes_as_before() -> None:
    config, params = network("qwen2-window")
    config = dataclasses.replace(config, lora=None)
    params = decoder.init(config, jax.random.key(0))
    before, after = logits(config, params), logits(in_float8(config), params)
    off = np.std(after - before) / np.std(before)
    assert 1e-3 < off < 0.1
    assert in_float8(config).decoding == config.decoding
    assert in_float8(config).merged == config.merged
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    with jax.set_mesh(mesh):
        tokens, own = devices.put((np.arange(12)[None], np.ones((1, 12), int)), mesh, "batch")
        caches = [
            prefill.prefill(each, builders.put(params, mesh), 16, tokens, tokens, own)
            for each in (config, in_float8(config))
        ]
    jax.tree.map(np.testing.assert_array_equal, *caches)


def assert_adapters_learn(matmul: Any, error: float) -> None:
    """On a base whose matmuls are rounded their gradients move, by at most this relative error."""
    config, params = network("qwen2-window")
    base, trained = adapters.split(config, jax.tree.map(jnp.asarray, learnt(params)))

    def gradient(config: DecoderConfig) -> Params:
        def loss(trained: Params) -> jax.Array:
            return jnp.mean(decoder.logits(config, adapters.join(base, trained), *rows()) ** 2)

        return jax.jit(jax.grad(loss))(trained)

    plain, rounded = gradient(config), gradient(dataclasses.replace(config, matmul=matmul))
    for wanted, found in zip(jax.tree.leaves(plain), jax.tree.leaves(rounded), strict=True):
        assert found.dtype == wanted.dtype
        assert 0 < np.linalg.norm(found - wanted) < error * np.linalg.norm(wanted)


def test_adapters_learn_on_a_base_whose_matmuls_are_rounded() -> None:
    assert_adapters_learn("float8", error=0.3)


def assert_a_mesh_agrees(matmul: Any, micro_batches: int, loss: float, gradient: float) -> None:
    """A GAD step on eight devices computes what one does, within these relative errors: sums in
    another order are rounded to other numbers here and there."""
    both = (builders.MESH_GAD.generator, builders.MESH_GAD.discriminator)
    generator, discriminator = (dataclasses.replace(one, matmul=matmul) for one in both)
    program = dataclasses.replace(
        builders.MESH_GAD, generator=generator, discriminator=discriminator
    )

    def step(mesh: jax.sharding.Mesh | None) -> builders.Outcome:
        texts = builders.texts()
        batch = [builders.rows(texts, which, micro_batches, mesh) for which in ("pairs", "samples")]
        state, metrics = steps.gad_step(program, builders.start(program, mesh), *batch)
        return builders.host((state, metrics))

    alone = step(None)
    mesh = make_mesh(2, 2, 2, jax.devices()[:8])
    with jax.set_mesh(mesh):
        divided = step(mesh)
    for name in ("generator/loss", "discriminator/loss"):
        np.testing.assert_allclose(
            divided.metrics[name], alone.metrics[name], rtol=loss, atol=loss / 20
        )
    for trees in zip(builders.gradients(divided), builders.gradients(alone), strict=True):
        found, wanted = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in trees
        )
        assert np.linalg.norm(found - wanted) < gradient * np.linalg.norm(wanted)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_on_a_mesh_computes_what_one_device_does(micro_batches: int) -> None:
    assert_a_mesh_agrees("float8", micro_batches, loss=0.02, gradient=0.1)

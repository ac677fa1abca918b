"""Kernels in 8 and 4 bits: their error, their bytes, networks on them, and how they are read."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.distributed import sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import adapters, decoder, quantised, weights
from gad_jax.models.config import DecoderConfig, Lora
from gad_jax.rollout import prefill
from gad_jax.types import Params, Segments
from tests.models import networks
from tests.models.test_adapters import learnt, logits, network

# Of the largest number of a block: half a step of int8, and of the widest gap in NF4's levels. The
# scales' bfloat16, rounded up, adds less than 1 %.
BOUNDS = {"int8": 0.5 / 127, "nf4": 0.5 * 0.3038}
KINDS = pytest.mark.parametrize("kind", BOUNDS)


@KINDS
@pytest.mark.parametrize("shape", [(128, 24), (70, 8), (6, 4)])
def test_a_kernel_comes_back_within_half_a_step(kind: str, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    kernel = random.standard_normal(shape).astype("f") * random.uniform(1e-3, 9, shape[1])
    kernel[:, 0] = 0
    codes, scales = quantised.quantise(kind, kernel)
    stored = {"codes": jnp.asarray(codes), "scales": jnp.asarray(scales)}
    found = np.asarray(quantised.dequantise(stored, jnp.float32, None, None))
    for first in range(0, shape[0], quantised.BLOCK):
        block = slice(first, first + quantised.BLOCK)
        largest = np.abs(kernel[block]).max(axis=0)
        assert (np.abs(found - kernel)[block] <= 1.01 * BOUNDS[kind] * largest + 1e-12).all()
    assert not found[:, 0].any()
    assert np.array_equal(np.sign(found), np.sign(kernel) * (found != 0))
    rounded = np.asarray(quantised.dequantise(stored, jnp.bfloat16, None, None))
    np.testing.assert_array_equal(rounded, found.astype(rounded.dtype))


def base(kind: str) -> tuple[DecoderConfig, Params, Params]:
    """Returns a network with adapters on a quantised base, its parameters, and those of floats."""
    config, params = network("qwen2-window")
    config = dataclasses.replace(config, quantisation=kind)
    params = jax.tree.map(jnp.asarray, params)
    small = quantised.quantised(kind, params)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), decoder.abstract(config))
    assert jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), small) == shapes
    return config, small, params


@KINDS
def test_fresh_adapters_on_a_quantised_base_compute_what_its_floats_do(kind: str) -> None:
    config, small, params = base(kind)
    floats = adapters.merge(config, small)
    of_base = logits(config.merged, floats)
    np.testing.assert_allclose(logits(config, small), of_base, atol=1e-5)
    off = of_base - logits(dataclasses.replace(config, quantisation="none"), params)
    assert 0 < off.std() / of_base.std() < {"int8": 0.03, "nf4": 0.4}[kind]
    small = jax.tree.map(jnp.asarray, learnt(small))
    merged = adapters.merge(config, small)
    np.testing.assert_allclose(logits(config, small), logits(config.merged, merged), atol=1e-5)
    copy = prefill.decode_copy(config, small)
    assert config.decoding is config
    assert copy.stacked["down"]["kernel"]["codes"] is small["layers"]["down"]["kernel"]["codes"]
    for layer in copy.layers:
        assert "lora_a" in layer["down"]
        assert "kernel" not in layer["down"]
    assert "lora_a" not in merged["layers"]["down"]


def test_gradients_of_adapters_are_those_on_the_floats() -> None:
    config, small, _ = base("nf4")
    tree, trained = adapters.split(config, jax.tree.map(jnp.asarray, learnt(small)))
    plain = dataclasses.replace(config, quantisation="none")
    floats, _ = adapters.split(plain, adapters.merge(config, small))
    rows = jnp.arange(12)[None], jnp.arange(12)[None], (jnp.ones((1, 12), int),) * 2

    def gradient(network: DecoderConfig, base: Params | None) -> Params:
        def loss(trained: Params) -> jax.Array:
            whole = adapters.join(base, trained)
            return jnp.sum(decoder.logits(network, whole, *rows[:2], Segments(*rows[2])) ** 2)

        return jax.jit(jax.grad(loss))(trained)

    for a, b in zip(
        jax.tree.leaves(gradient(config, tree)),
        jax.tree.leaves(gradient(plain, floats)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@KINDS
def test_a_directory_is_read_quantised_on_any_mesh(kind: str, tmp_path: Path) -> None:
    directory = networks.write(tmp_path, networks.NETWORKS["qwen2-window"])
    plain, params = weights.load(directory)
    _, found = weights.load(directory, quantisation=kind)
    wanted = quantised.quantised(kind, params)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    config = dataclasses.replace(plain, lora=Lora(3, 6.0, ("query",)), quantisation=kind)
    reached: list[int] = []
    with jax.set_mesh(mesh := make_mesh(2, 2, 2)):
        _, split = weights.load(directory, mesh, quantisation=kind)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(split), jax.device_get(wanted))
        quantised.check(config, mesh)
        reached.append(split["layers"]["gate"]["kernel"]["codes"].addressable_shards[0].data.nbytes)
    assert reached == [found["layers"]["gate"]["kernel"]["codes"].nbytes // 4]
    floats = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"]))
    bits = 32 * sum(leaf.nbytes for leaf in jax.tree.leaves(found["layers"])) / floats
    assert bits < {"int8": 10, "nf4": 6}[kind]


def test_what_cannot_be_divided_is_refused_by_name() -> None:
    config, _, _ = base("nf4")
    odd = dataclasses.replace(config, width=config.width + 2)
    with pytest.raises(
        UserError, match=r"base_dtype=nf4 .* needs sizes that 8 divides, and the .*"
    ):
        quantised.check(odd, make_mesh(2, 4, 1))
    with pytest.raises(UserError, match=r"two inputs in a byte.*--lora\.base_dtype=int8"):
        quantised.quantise("nf4", np.zeros((3, 4), np.float32))


@pytest.mark.parametrize("name", ["query", "down"])
def test_devices_round_a_kernel_as_the_host_does(name: str) -> None:
    """Also where a block lies across two shards of the inputs: 96 numbers on two."""
    random = np.random.default_rng(0)
    kernel = random.standard_normal((96, 8)).astype("f") * random.uniform(1e-6, 9, 8).astype("f")
    kernel[:, 3] = 0
    kernel[7] = 0.3  # no number of bfloat16
    codes, scales = quantised.quantise("int8", kernel)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        axes = sharding.parameter_axes(f"layers/{name}/kernel")[1:]
        spread = sharding.reshard(jnp.asarray(kernel), *sharding.gathered_axes(*axes))
        layer = {name: {"kernel": spread, "bias": jnp.zeros(8)}, "norm": {"scale": jnp.ones(4)}}
        found = jax.jit(quantised.rounded_layer)(layer)
    np.testing.assert_array_equal(found[name]["kernel"]["codes"], codes)
    np.testing.assert_array_equal(found[name]["kernel"]["scales"], scales)
    assert set(found[name]) == {"kernel", "bias"}
    assert found["norm"]["scale"].dtype == jnp.float32

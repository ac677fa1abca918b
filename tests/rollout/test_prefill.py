"""The decode copy of the weights."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gad_jax.distributed import devices, sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import adapters, families, joined, quantised
from gad_jax.models.config import Lora
from gad_jax.rollout import engine, prefill, ring
from gad_jax.types import Params, Rollout
from tests.models.networks import NETWORKS, random_params
from tests.rollout.model import (
    PROMPTS,
    SAME,
    SAMPLING,
    Model,
    assert_same,
)


def test_prepared_weights_are_the_same_numbers(llama: Model, sampled: Rollout) -> None:
    with jax.set_mesh(llama.mesh):
        prepared = prefill.decode_copy(llama.config, llama.params)
        key = jax.random.fold_in(jax.random.key(1), 0)
        rollout = engine.generate(
            llama.config, llama.params, PROMPTS, np.arange(4), key, SAMPLING, llama.mesh, prepared
        )
    assert_same(rollout, sampled)
    assert len(prepared.layers) == 2
    kernel = prepared.layers[1]["gate_up"]["turned"][1]
    np.testing.assert_array_equal(kernel.T, llama.params["layers"]["up"]["kernel"][1])


def test_prepared_weights_are_half_where_that_computes(llama: Model) -> None:
    half = dataclasses.replace(llama.config, compute_dtype="bfloat16")
    with jax.set_mesh(llama.mesh):
        prepared = prefill.decode_copy(half, llama.params)
    kinds = {
        sharding.path_name(path).split("/")[-1]: leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(prepared)
    }
    assert kinds["turned"] == jnp.bfloat16
    assert kinds["scale"] == jnp.float32


def floats_of(layer: Params) -> Params:
    """Returns a layer of the decode copy with its kernels dequantised."""
    stacked = jax.tree.map(lambda x: x[None], layer)
    whole = {name: quantised.whole_part(name, part) for name, part in stacked.items()}
    return jax.tree.map(lambda x: x[0], whole)


def test_rounded_weights_decode_as_their_floats_do(llama: Model, sampled: Rollout) -> None:
    """In a quarter of float32's bytes."""
    config = dataclasses.replace(llama.config, decode_weights="int8")
    with jax.set_mesh(llama.mesh):
        copy = prefill.decode_copy(config, llama.params)
        floats = [floats_of(layer) for layer in copy.layers]
        layers = tuple(joined.join(llama.config, layer) for layer in floats)
        dequantised = prefill.decode_copy(llama.config, llama.params)._replace(layers=layers)
        key = jax.random.fold_in(jax.random.key(1), 0)
        given = (llama.params, PROMPTS, np.arange(4), key, SAMPLING, llama.mesh)
        found = engine.generate(config, *given, copy)
        wanted = engine.generate(llama.config, *given, dequantised)
    assert_same(found, wanted)
    assert np.abs(sampled.logprobs - found.logprobs).max() > 100 * SAME
    kernels = [layer["up"]["kernel"] for layer in copy.layers]
    assert {kernel["codes"].dtype.name for kernel in kernels} == {"int8"}
    whole = [layer["up"]["kernel"] for layer in floats]
    sizes = [sum(x.nbytes for x in jax.tree.leaves(each)) for each in (kernels, whole)]
    assert 0.25 < sizes[0] / sizes[1] < 0.27


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_in_bfloat16_decode_in_the_compute_dtype(models: Any, family: str) -> None:
    """Kernels and head take half the bytes; the samples are those of nearly the same policy."""
    model: Model = models(family)
    config = dataclasses.replace(model.config, decode_weights="bfloat16")
    with jax.set_mesh(model.mesh):
        copy, whole = (prefill.decode_copy(c, model.params) for c in (config, model.config))
        key = jax.random.fold_in(jax.random.key(1), 0)
        given = (model.params, PROMPTS, np.arange(4), key, SAMPLING, model.mesh)
        found = engine.generate(config, *given, copy)
    read = [sum(x.nbytes for x in jax.tree.leaves(ring.read_by_step(c))) for c in (copy, whole)]
    assert 0.5 < read[0] / read[1] < 0.52  # norms and biases stay
    kept = {x.dtype.name for x in jax.tree.leaves((copy.rest, copy.layers[0]["attention_norm"]))}
    assert kept == {"float32"}
    assert ring.head(copy).shape == ring.head(whole).shape
    forced = model.forced(PROMPTS, found)
    flat = zip(found.tokens.reshape(12, -1), found.logprobs.reshape(12, -1), strict=True)
    for row, (tokens, logprobs) in zip(forced, flat, strict=True):
        expected = jax.device_get(jax.nn.log_softmax(row / 0.8))
        differences = np.abs(logprobs - expected[np.arange(len(tokens)), tokens])
        assert 100 * SAME < differences.max() < 0.1


@pytest.mark.usefixtures("one_device")
def test_adapters_on_a_base_decode_in_bfloat16() -> None:
    config, params = on_a_base("none")
    half = dataclasses.replace(config, decode_weights="bfloat16")
    copy, merged = (
        prefill.decode_copy(half, params),
        prefill.decode_copy(half.merged, adapters.merge(config, params)),
    )
    jax.tree.map(np.testing.assert_array_equal, copy, merged)
    assert {ring.head(copy).dtype.name, copy.layers[0]["down"]["turned"].dtype.name} == {"bfloat16"}


def test_adapters_are_merged_before_weights_are_rounded(llama: Model) -> None:
    config = dataclasses.replace(
        llama.config, lora=Lora(2, 4.0, ("query", "down")), decode_weights="int8"
    )
    trained = jax.tree.map(lambda x: x + 0.02, adapters.init(config, jax.random.key(3)))
    params = adapters.join(llama.params, jax.tree.map(jnp.asarray, trained))
    with jax.set_mesh(llama.mesh):
        copy = prefill.decode_copy(config, params)
        merged = prefill.decode_copy(config.merged, adapters.merge(config, params))
    jax.tree.map(np.testing.assert_array_equal, copy.layers, merged.layers)
    codes = [each["query"]["kernel"]["codes"] for each in copy.layers]
    assert {x.dtype.name for x in codes} == {"int8"}
    assert set(copy.layers[0]["down"]) == {"kernel"}


ONE = make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def one_device():
    """A mesh of one device, set."""
    with jax.set_mesh(ONE):
        yield


def on_a_base(quantisation: str, **sizes: Any) -> tuple[Any, Params]:
    """Returns a network with adapters on all projections, and its parameters."""
    plain = families.read(NETWORKS["qwen2-window"])
    lora = Lora(2, 4.0, ("query", "key", "value", "output", "gate", "up", "down"))
    config = dataclasses.replace(plain, lora=lora, **sizes)
    params = adapters.join(random_params(config.merged), adapters.init(config, jax.random.key(0)))
    if quantisation != "none":
        params = quantised.quantised(quantisation, params)
        config = dataclasses.replace(config, quantisation=quantisation)
    where = jax.tree.map(partial(NamedSharding, ONE), sharding.parameter_specs(params))
    return config, jax.device_put(params, where)


def nbytes(tree: Any) -> int:
    """Returns the bytes of a tree's arrays, each counted once."""
    return sum({id(leaf): leaf.nbytes for leaf in jax.tree.leaves(tree)}.values())


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_rollout_on_a_quantised_base_holds_it_once(kind: str) -> None:
    config, params = on_a_base(kind, layers=3, pattern=(0,) * 3, width=96, mlp_width=256)
    base, trained = adapters.split(config, params)
    assert base is not None
    copy = prefill.decode_copy(config, params)
    head = nbytes(copy.head)  # turned, on a CPU
    vectors = sum(x.nbytes for x in jax.tree.leaves(base["layers"]) if x.ndim == 2)
    added = nbytes((params, copy)) - nbytes(params)
    assert added == head + nbytes(trained) + vectors
    kernels, _ = prefill.kernels_apart(base["layers"])
    rows = {"int8": 1, "nf4": 2}[kind]
    floats = [4 * rows * part["kernel"]["codes"].size for part in kernels.values()]
    state = engine.start(config, (program := engine.RolloutProgram(2, 4, (0,), 0)), 1, 16, 2)
    packed = engine.make_queue([np.ones(3, np.int32)], np.zeros(1), np.full(1, 4), 1)
    prompt, queue = devices.put((packed.rows, packed.queue), ONE, "batch")
    prompts = prefill.prefill(config, params, packed.size, *prompt)
    arguments = (copy, prompts, queue, jax.random.key(0), state)
    traced = engine.decode.trace(config, program, 16, 0, *arguments)
    found = traced.lower().compile().memory_analysis()
    assert found is not None
    taken = nbytes((copy, prompts, queue, state))
    assert found.argument_size_in_bytes == pytest.approx(taken, rel=0.01)
    assert found.temp_size_in_bytes < 1.1 * sum(floats) / 3  # of one layer at a time


@pytest.mark.usefixtures("one_device")
def test_a_float_base_lends_what_decoding_reads_as_it_is() -> None:
    config, params = on_a_base("none")
    copy = prefill.decode_copy(config, params)
    assert copy.rest["embedding"] is params["embedding"]
    assert copy.rest["final_norm"]["scale"] is params["final_norm"]["scale"]
    assert copy.stacked == {}
    half = prefill.decode_copy(dataclasses.replace(config, compute_dtype="bfloat16"), params)
    assert half.rest["embedding"].dtype == jnp.bfloat16
    shared = {id(x) for x in prefill.shared(config, params)}
    assert shared == {id(x) for x in jax.tree.leaves(copy.rest)}


@pytest.mark.usefixtures("one_device")
def test_an_accelerator_reads_an_untied_head_where_the_base_has_it() -> None:
    config, params = on_a_base("none")
    assert not config.tied
    cache = ring.make(config, 3, 8)
    cache = cache._replace(token=cache.token + 5)
    _, wanted = ring.forward(config, prefill.decode_copy(config, params), cache)
    with devices.compiling_for("gpu"):
        copy = prefill.decode_copy(config, params)
    assert copy.head is None
    assert copy.rest["head"]["kernel"] is params["head"]["kernel"]
    _, found = ring.forward(config, copy, cache)
    np.testing.assert_allclose(found, wanted, atol=1e-5)

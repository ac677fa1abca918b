"""The decode copy of the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gad_jax.distributed import sharding
from gad_jax.models import adapters, quantised
from gad_jax.models.config import Lora
from gad_jax.rollout import engine, prefill
from gad_jax.types import Params, Rollout
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
    kernel = prepared.layers[1]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, llama.params["layers"]["up"]["kernel"][1])


def test_prepared_weights_are_half_where_that_computes(llama: Model) -> None:
    half = dataclasses.replace(llama.config, compute_dtype="bfloat16")
    with jax.set_mesh(llama.mesh):
        prepared = prefill.decode_copy(half, llama.params)
    kinds = {
        sharding.path_name(path).split("/")[-1]: leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(prepared)
    }
    assert kinds["kernel"] == jnp.bfloat16
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
        layers = tuple(map(floats_of, copy.layers))
        dequantised = prefill.decode_copy(llama.config, llama.params)._replace(layers=layers)
        key = jax.random.fold_in(jax.random.key(1), 0)
        given = (llama.params, PROMPTS, np.arange(4), key, SAMPLING, llama.mesh)
        found = engine.generate(config, *given, copy)
        wanted = engine.generate(llama.config, *given, dequantised)
    assert_same(found, wanted)
    assert np.abs(sampled.logprobs - found.logprobs).max() > 100 * SAME
    kernels = [layer["up"]["kernel"] for layer in copy.layers]
    assert {kernel["codes"].dtype.name for kernel in kernels} == {"int8"}
    floats = [layer["up"]["kernel"] for layer in layers]
    sizes = [sum(x.nbytes for x in jax.tree.leaves(each)) for each in (kernels, floats)]
    assert 0.25 < sizes[0] / sizes[1] < 0.27


def test_adapters_are_merged_before_weights_are_rounded(llama: Model) -> None:
    config = dataclasses.replace(
        llama.config, lora=Lora(2, 4.0, ("query", "down")), decode_weights="int8"
    )
    trained = jax.tree.map(lambda x: x + 0.02, adapters.init(config, jax.random.key(3)))
    params = adapters.join(llama.params, jax.tree.map(jnp.asarray, trained))
    with jax.set_mesh(llama.mesh):
        copy = prefill.decode_copy(config, params)
        merged = prefill.decode_copy(config.merged, adapters.merge(config, params))
    jax.tree.map(np.testing.assert_array_equal, copy, merged)
    codes = [each["query"]["kernel"]["codes"] for each in copy.layers]
    assert {x.dtype.name for x in codes} == {"int8"}
    assert set(copy.layers[0]["down"]) == {"kernel"}

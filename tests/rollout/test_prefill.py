"""The decode copy of the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gad_jax.distributed import sharding
from gad_jax.rollout import engine, prefill
from gad_jax.types import Rollout
from tests.rollout.model import (
    PROMPTS,
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

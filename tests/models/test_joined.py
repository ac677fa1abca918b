"""Joined projections: the numbers of the separate ones, and nothing sent between devices."""

import dataclasses
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gad_jax.distributed import devices, sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import decoder, families, joined
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Params
from tests.models.networks import NETWORKS, random_params

TWO = make_mesh(replica=1, fsdp=1, tensor=2, devices=jax.devices()[:2])


def network(name: str) -> tuple[DecoderConfig, Params]:
    """Returns a network and the parameters of its last layer, none of which is zero or one."""
    config = families.read(NETWORKS[name])
    layer = jax.tree.map(lambda x: jnp.asarray(x[-1]), random_params(config)["layers"])
    return config, layer


def attend(query: Any, key: Any, value: Any) -> tuple[Any, Any]:
    """Returns a mixture that reads every query and value, and the three of them."""
    n, heads, width = query.shape
    kv = key.shape[1]
    split = sharding.spec("batch", "kv_heads", None, None)
    grouped = query.reshape(n, kv, heads // kv, width, out_sharding=split)
    mixed = grouped + (key + value)[:, :, None]
    out = mixed.reshape(query.shape, out_sharding=sharding.spec("batch", "heads", None))
    return out, (query, key, value)


@partial(jax.jit, static_argnums=0)
def run(config: DecoderConfig, layer: Params, x: Any) -> Any:
    angles = decoder.angles(config, config.kinds[0], jnp.arange(x.shape[0], dtype=jnp.int32))
    return nnx.merge(decoder.block_graph(config), layer)(x, angles, attend)


KINDS = ("llama-biases", "qwen3-biases", "olmo2", "gemma3", "phi4-mini", "granite", "mixtral")


@pytest.fixture(params=["cpu", "gpu"])
def platform(request: pytest.FixtureRequest) -> Iterator[str]:
    """What is compiled for: only a CPU turns its kernels. Both run on a CPU here."""
    with devices.compiling_for(request.param):
        yield request.param


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("platform")
def test_a_joined_layer_computes_what_the_separate_one_does(name: str) -> None:
    config, layer = network(name)
    x = jax.random.normal(jax.random.key(0), (5, config.width))
    both = joined.join(config, layer)
    assert ("qkv" in both, "query" in both) == (True, False)
    assert ("gate_up" in both) == (config.experts is None)
    sizes = [sum(each.nbytes for each in jax.tree.leaves(tree)) for tree in (layer, both)]
    assert sizes[0] == sizes[1]
    found, wanted = run(config.decoding, both, x), run(config, layer, x)
    # The same products; another matmul may add them in another order.
    jax.tree.map(partial(np.testing.assert_allclose, atol=3e-6, rtol=1e-6), found, wanted)


def test_kernels_that_are_not_floats_stay_apart() -> None:
    config, layer = network("llama-biases")
    for changed in ({"decode_weights": "int8"}, {"quantisation": "int8"}):
        other = dataclasses.replace(config, **changed)
        assert not other.decoding.joined
        assert joined.join(other, layer) is layer


@pytest.mark.parametrize("name", ["llama-biases", "qwen3-biases", "olmo2"])
def test_a_tensor_axis_splits_joined_kernels_without_a_transfer(name: str, platform: str) -> None:
    config, layer = network(name)
    x = jax.random.normal(jax.random.key(0), (5, config.width))
    wanted = run(config.decoding, joined.join(config, layer), x)

    def placed(path: Any, leaf: Any) -> Any:
        axes = sharding.parameter_axes("layers/" + sharding.path_name(path))[1:]
        return sharding.gather(leaf, *axes)

    with jax.set_mesh(TWO):
        split = jax.jit(lambda tree: jax.tree_util.tree_map_with_path(placed, tree))(layer)
        join = jax.jit(partial(joined.join, config)).lower(split).compile()
        both, x = join(split), sharding.reshard(x, "batch", None)
        apart = run.lower(config, split, x).compile()
        step = run.lower(config.decoding, both, x).compile()
        found = step(both, x)
    gate_up, qkv = both["gate_up"], both["qkv"]
    if platform == "cpu":
        assert gate_up["turned"].sharding.spec == jax.P(None, "tensor", None)
        assert qkv["turned"].sharding.spec == jax.P("tensor", None)
    else:
        assert gate_up["kernel"].sharding.spec == jax.P(None, None, "tensor")
        assert qkv["kernel"].sharding.spec == jax.P(None, "tensor")
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, wanted)
    assert not sent(join.as_text())
    # The sums of the two projections back to the width, and of olmo2's norms of all heads.
    assert len(sent(step.as_text())) >= 2
    assert sent(step.as_text()) == sent(apart.as_text())


def sent(text: str) -> list[str]:
    """Returns the transfers of a compiled program."""
    kinds = r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    return re.findall(rf" = .*? {kinds}", text)

"""Networks with adapters: what they compute, apart and merged, and how they are divided."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gad_jax.distributed import sharding
from gad_jax.models import adapters, decoder, families
from gad_jax.models.config import DecoderConfig, Lora
from gad_jax.models.layers import Linear
from gad_jax.rollout import prefill, ring
from gad_jax.types import Params, Segments
from tests.models.networks import NETWORKS, random_params

ATTENTION = ("query", "key", "value", "output")
ALL = (*ATTENTION, "gate", "up", "down")
CASES = {"qwen2-window": ALL, "gemma3": ALL, "qwen3-moe": ATTENTION}
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 12))


def network(name: str) -> tuple[DecoderConfig, Params]:
    """Returns a network with adapters, and whole random weights with B of nought."""
    plain = families.read(NETWORKS[name])
    config = dataclasses.replace(plain, lora=Lora(3, 6.0, CASES[name]))
    fresh = adapters.init(config, jax.random.key(0))
    base, _ = adapters.split(config, decoder.abstract(config))
    assert jax.tree.structure(base) == jax.tree.structure(decoder.abstract(plain))
    return config, adapters.join(random_params(plain), fresh)


def learnt(params: Params) -> Params:
    """Returns the network with other B than nought."""
    random = np.random.default_rng(1)

    def one(path: Any, leaf: Any) -> np.ndarray:
        if sharding.path_name(path).endswith("lora_b"):
            return 0.1 * random.standard_normal(leaf.shape).astype(np.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(one, params)


def logits(config: DecoderConfig, params: Params) -> np.ndarray:
    rows = jnp.asarray(TOKENS), jnp.broadcast_to(jnp.arange(12), (2, 12))
    own = jnp.ones_like(rows[0])
    return np.asarray(jax.jit(decoder.logits, static_argnums=0)(
        config, params, *rows, Segments(own, own)
    ))  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_fresh_adapters_change_no_bit_and_merged_ones_compute_the_same(name: str) -> None:
    config, params = network(name)
    base, trained = adapters.split(config, params)
    assert base is not None
    whole = logits(config.merged, base)
    np.testing.assert_array_equal(logits(config, params), whole)
    params = learnt(params)
    apart, merged = (
        logits(config, params),
        adapters.merge(config, jax.tree.map(jnp.asarray, params)),
    )
    assert np.abs(apart - whole).max() > 0.05
    np.testing.assert_allclose(logits(config.merged, merged), apart, atol=1e-5)
    # What decodes is merged too, and halves nothing of the sum.
    copies = prefill.decode_copy(config, params), prefill.decode_copy(config.merged, merged)
    ours, wanted = (ring.read_by_step(copy) for copy in map(jax.device_put, copies))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), ours, wanted)
    assert set(trained) == {"layers"}
    assert set(trained["layers"]) == set(CASES[name])


def test_parts_are_joined_as_they_were_split() -> None:
    config, params = network("qwen2-window")
    score = decoder.init_score(config, jax.random.key(0))
    base, trained = adapters.split(config, params | {"score": score})
    assert base is not None
    assert trained["score"] is score
    assert "score" not in base
    joined = adapters.join(base, trained)
    assert jax.tree.structure(joined) == jax.tree.structure(params | {"score": score})
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, joined, params | {"score": score}))
    assert adapters.split(config.merged, params) == (None, params)
    assert adapters.join(None, params) is params
    assert "head" in base
    assert "head" not in adapters.without_head(base)


def test_a_base_is_of_its_dtype_but_for_norms_and_biases() -> None:
    config, _ = network("qwen2-window")
    base, trained = adapters.abstract(config, jnp.bfloat16)
    assert base is not None
    assert base["embedding"].dtype == base["layers"]["gate"]["kernel"].dtype == jnp.bfloat16
    kept = base["layers"]["query"]["bias"], base["final_norm"]["scale"], *jax.tree.leaves(trained)
    assert {leaf.dtype for leaf in kept} == {jnp.dtype(jnp.float32)}


def test_adapters_start_as_those_of_peft() -> None:
    config, params = network("qwen2-window")
    for name, part in params["layers"].items():
        if "lora_a" not in part:
            continue
        bound = 1 / np.sqrt(part["kernel"].shape[1])
        largest = np.abs(part["lora_a"]).max()
        assert 0.8 * bound < largest <= bound, name
        assert part["lora_a"].std() == pytest.approx(bound / np.sqrt(3), rel=0.2)
        assert not part["lora_b"].any()
    other = adapters.init(config, jax.random.key(1))["layers"]["query"]["lora_a"]
    assert (other != params["layers"]["query"]["lora_a"]).any()


def linear(lora: Lora | None) -> tuple[Any, Params]:
    layer = nnx.eval_shape(lambda: Linear(nnx.Rngs(0), ("scale", 6), ("scale", 4), lora=lora))
    return nnx.split(layer)[0], nnx.to_pure_dict(nnx.state(layer))


def test_a_step_of_a_wide_adapter_is_a_step_of_the_kernel() -> None:
    """With A orthogonal, B = 0 and scale 1, d(AB) = A Aᵀ dW = dW; A itself does not move."""
    random = np.random.default_rng(0)
    kernel, x, target = (random.standard_normal(s) for s in [(6, 4), (9, 6), (9, 4)])
    orthogonal = np.linalg.qr(random.standard_normal((6, 6)))[0]
    graph, _ = linear(Lora(6, 6.0, ("query",)))
    plain, _ = linear(None)

    def loss(graph: Any, params: Params) -> jax.Array:
        y = nnx.merge(graph, params)(jnp.asarray(x, jnp.float32))
        return 0.5 * jnp.sum((y - target) ** 2)

    wide = {"kernel": kernel, "lora_a": orthogonal, "lora_b": np.zeros((6, 4))}
    wide = jax.tree.map(lambda z: jnp.asarray(z, jnp.float32), wide)
    found = jax.grad(loss, 1)(graph, wide)
    whole = jax.grad(loss, 1)(plain, {"kernel": wide["kernel"]})["kernel"]
    by_hand = x.T @ (x @ kernel - target)
    np.testing.assert_allclose(whole, by_hand, atol=1e-4)
    np.testing.assert_allclose(orthogonal @ found["lora_b"], by_hand, atol=1e-4)
    np.testing.assert_array_equal(found["lora_a"], 0)
    # Away from the start, with another scale: dA = s dW Bᵀ, dB = s Aᵀ dW at the merged kernel.
    a, b, scale = random.standard_normal((6, 3)), random.standard_normal((3, 4)), 2.0
    graph, _ = linear(Lora(3, 6.0, ("query",)))
    some = {"kernel": wide["kernel"], "lora_a": jnp.asarray(a), "lora_b": jnp.asarray(b)}
    found = jax.grad(loss, 1)(graph, jax.tree.map(lambda z: z.astype(jnp.float32), some))
    moved = x.T @ (x @ (kernel + scale * a @ b) - target)
    np.testing.assert_allclose(found["lora_a"], scale * moved @ b.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found["lora_b"], scale * a.T @ moved, rtol=1e-4, atol=1e-3)

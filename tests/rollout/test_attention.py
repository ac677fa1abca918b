"""Attention of the slots' newest queries: the form for cuDNN against matmuls and a loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.distributed import devices, sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.rollout import attention

SLOTS, HEADS, KV_HEADS, WIDTH, POSITIONS = 3, 6, 2, 8, 16
WRITTEN = 21
"""The newest token's key is the 22nd that was written: the ring is full."""
CONTEXT = (1, 7, 16)


def cached(layout: attention.Layout) -> list[Any]:
    """Returns query, keys, values and what is seen, the same numbers in every layout."""
    sizes = {"slot": SLOTS, "kv_head": KV_HEADS, "position": POSITIONS, "width": WIDTH}
    both = [jax.random.normal(jax.random.key(n), tuple(sizes.values())) for n in (1, 2)]
    caches = [jnp.einsum(x, tuple(sizes), order) for x, order in zip(both, layout, strict=True)]
    seen = attention.visible(jnp.int32(WRITTEN), jnp.array(CONTEXT), POSITIONS)
    query = jax.random.normal(jax.random.key(0), (SLOTS, HEADS, WIDTH))
    return [query, *caches, seen]


def by_hand(query: Any, keys: Any, values: Any, seen: Any) -> np.ndarray:
    """Returns the softmax over the newest positions, one head after the other."""
    out = np.zeros(query.shape)
    for slot in range(SLOTS):
        newest = [(WRITTEN - age) % POSITIONS for age in range(CONTEXT[slot])]
        assert sorted(newest) == np.flatnonzero(seen[slot]).tolist()
        for head in range(HEADS):
            of = head // (HEADS // KV_HEADS)
            logits = np.float64(keys[slot, of, newest]) @ np.float64(query[slot, head])
            weights = np.exp(logits / np.sqrt(WIDTH))
            out[slot, head] = weights @ values[slot, of, newest] / weights.sum()
    return out


@pytest.fixture(scope="module")
def wanted() -> np.ndarray:
    return by_hand(*map(np.asarray, cached(attention.GPU_LAYOUT)))


@pytest.mark.parametrize("name", ["CPU_LAYOUT", "GPU_LAYOUT", "TPU_LAYOUT"])
def test_matmuls_read_caches_in_any_order(name: str, wanted: np.ndarray) -> None:
    layout = getattr(attention, name)
    found = attention.matmuls(*cached(layout), layout)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_form_for_cudnn_computes_the_same(wanted: np.ndarray) -> None:
    found = attention.flash(*cached(attention.GPU_LAYOUT), implementation="xla")
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_it_works_on_the_heads_of_each_device(wanted: np.ndarray) -> None:
    with jax.set_mesh(make_mesh(1, 1, 2, jax.devices()[:2])):
        query, *caches, seen = cached(attention.GPU_LAYOUT)
        query = sharding.reshard(query, None, "heads", None)
        caches = [sharding.reshard(cache, None, "kv_heads", None, None) for cache in caches]
        given = (query, *caches, sharding.reshard(seen, None, None))
        step = jax.jit(lambda *x: attention.flash(*x, implementation="xla"))
        compiled = step.lower(*given).compile()
        found = compiled(*given)
    assert found.sharding.spec == jax.P(None, "tensor", None)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not any(word in compiled.as_text() for word in ("all-", "collective-permute"))


@pytest.mark.parametrize(
    ("dtype", "width", "positions", "kernel"),
    [
        (jnp.bfloat16, 64, 960, "flash"),
        (jnp.float16, 128, 512, "flash"),
        (jnp.float32, 64, 960, "matmuls"),
        (jnp.bfloat16, 256, 960, "matmuls"),  # cards before Hopper refuse it
        (jnp.bfloat16, 60, 960, "matmuls"),
        (jnp.bfloat16, 64, 1023, "matmuls"),
    ],
)
def test_a_gpu_uses_cudnn_where_it_takes_the_shapes(
    dtype: Any, width: int, positions: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def take(name: str) -> Any:
        return lambda query, *_: called.append(name) or query

    for name in ("flash", "matmuls"):
        monkeypatch.setattr(attention, name, take(name))
    query, cache = jnp.zeros((2, 4, width), dtype), jnp.zeros((2, 2, positions, width), dtype)
    seen = jnp.ones((2, positions), bool)
    with devices.compiling_for("gpu"):
        assert attention.ring_layout() is attention.GPU_LAYOUT
        attention.attend(query, cache, cache, seen)
    attention.attend(query, cache, cache, seen)
    assert called == [kernel, "matmuls"]

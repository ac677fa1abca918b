"""Who sees whom in a packed row, and that the blocked kernel is softmax attention, no more."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import attention
from gad_jax.types import Segments

# Sums of at most 19 products of order 1 in float32 (eps 6e-8), in another order.
TOLERANCE = 2e-6

# Compiled whole: op by op, each operation of each shape is compiled by itself.
attend = jax.jit(attention.attend)


@jax.jit
def visible(segments: Segments) -> jax.Array:
    """Returns the mask of layers without a window, which reads no positions."""
    return attention.visible(segments, segments.own)


# A prompt of two tokens, responses of two and one, padded to seven.
SHARED = Segments(np.array([[1, 1, 2, 2, 3, 0, 0]]), np.array([[1, 1, 1, 1, 1, 0, 0]]))
# fmt: off
SEEN = [
    [1, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 0],
    [1, 1, 1, 1, 0, 0, 0],
    [1, 1, 0, 0, 1, 0, 0],  # the second response: the prompt and itself, not the first response
    [0, 0, 0, 0, 0, 1, 0],  # padding: itself, so that its softmax is defined
    [0, 0, 0, 0, 0, 0, 1],
]
# fmt: on


def random_inputs(
    rows: int, length: int, heads: int, kv_heads: int, width: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)

    def normal(count: int) -> np.ndarray:
        return random.normal(size=(rows, length, count, width)).astype(np.float32)

    return normal(heads), normal(kv_heads), normal(kv_heads)


def packed(length: int) -> Segments:
    """Returns two rows of two groups each; the second row's groups have no shared prompt."""
    own = np.zeros((2, length), np.int32)
    prefix = np.zeros((2, length), np.int32)
    third = max(length // 3, 1)
    for start, segment, before in ((0, 1, 1), (third, 2, 1), (2 * third, 3, 1), (length - 1, 0, 0)):
        own[0, start:], prefix[0, start:] = segment, before
    for start, segment in ((0, 1), (third, 2), (2 * third, 3)):
        own[1, start:], prefix[1, start:] = segment, segment
    return Segments(own, prefix)


def explicit(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> np.ndarray:
    """Returns attention in float64, one head and one query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    seen = np.asarray(mask)
    out = np.zeros_like(q)
    shared = q.shape[2] // k.shape[2]
    for row, place, head in np.ndindex(*q.shape[:3]):
        keys = np.flatnonzero(seen[row, place])
        logits = k[row, keys, head // shared] @ q[row, place, head] / np.sqrt(q.shape[3])
        weights = np.exp(logits - logits.max())
        out[row, place, head] = weights / weights.sum() @ v[row, keys, head // shared]
    return out


def test_who_sees_whom() -> None:
    np.testing.assert_array_equal(visible(SHARED)[0].astype(int), SEEN)


def test_two_groups_in_a_row_do_not_meet() -> None:
    own, prefix = np.array([[1, 2, 3, 4]]), np.array([[1, 1, 3, 3]])
    assert visible(Segments(own, prefix))[0].astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]


# Below, off and on a multiple of the blocks; all heads share, some do, none does.
@pytest.mark.parametrize(("length", "kv_heads"), [(1, 2), (3, 4), (7, 1), (7, 2), (16, 2)])
def test_attention_is_a_softmax_over_what_is_seen(length: int, kv_heads: int) -> None:
    query, key, value = random_inputs(2, length, 4, kv_heads)
    mask = visible(packed(length))
    ours = attend(query, key, value, mask)
    np.testing.assert_allclose(ours, explicit(query, key, value, mask), atol=TOLERANCE)


def test_a_key_head_serves_neighbouring_query_heads() -> None:
    query, key, value = random_inputs(1, 5, 4, 2)
    mask = np.tril(np.ones((1, 5, 5), bool))
    ours = attend(query, key, value, mask)
    # heads 0 and 1 read key head 0, 2 and 3 key head 1
    repeated = (np.repeat(x, 2, axis=2) for x in (key, value))
    np.testing.assert_allclose(ours, attend(query, *repeated, mask), atol=TOLERANCE)


def assert_same(
    inputs: Any, mask: jax.Array, one: Callable[..., Any], other: Callable[..., Any], terms: int = 1
) -> None:
    """Compares values and gradients of two functions of query, key, value and mask; sums have
    `terms` times as many terms as in 19 tokens."""
    weight = jnp.asarray(np.random.default_rng(1).normal(size=inputs[0].shape), jnp.float32)

    @jax.jit
    def both(*inputs: jax.Array) -> list[tuple[jax.Array, ...]]:
        results = []
        for function in (one, other):
            out, pull = jax.vjp(lambda *x, f=function: f(*x, mask), *inputs)
            results.append((out, *pull(weight)))
        return results

    for a, b in zip(*both(*inputs), strict=True):
        # a key's gradient sums all queries
        np.testing.assert_allclose(a, b, atol=5 * TOLERANCE * terms)


@pytest.mark.parametrize("length", [7, 19])
def test_attention_is_the_library_s(length: int) -> None:
    def library(*inputs: jax.Array) -> jax.Array:
        *inputs, mask = inputs
        return jax.nn.dot_product_attention(*inputs, mask=mask[:, None], implementation="xla")

    mask = visible(packed(length))
    assert_same(random_inputs(2, length, 4, 2), mask, attention.attend, library)


@pytest.mark.parametrize("length", [100, 300])
def test_splash_attention(length: int) -> None:
    """The kernel that a TPU runs, interpreted; rows of one and of three blocks."""
    splash = functools.partial(attention._splash, interpret=True)
    mask = visible(packed(length))
    assert_same(
        random_inputs(2, length, 2, 1), mask, splash, attention._blocked, terms=length // 19
    )


def test_padding_has_no_gradient_and_segments_none_across() -> None:
    mask = visible(SHARED)
    inputs = random_inputs(1, 7, 4, 2)
    weight = np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32)

    @jax.jit
    def gradients(chosen: jax.Array, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        def loss(*inputs: jax.Array) -> jax.Array:
            out = attention.attend(*inputs, mask) * weight
            return jnp.sum(out * chosen[:, None, None])

        return jax.grad(loss, argnums=(0, 1, 2))(*inputs)

    def reached(chosen: list[int]) -> list[list[bool]]:
        """Returns at which places query, key and value have a gradient that is not exactly 0."""
        found = gradients(np.asarray(chosen, np.float32), *inputs)
        return [np.any(np.asarray(x) != 0, axis=(0, 2, 3)).astype(int).tolist() for x in found]

    query, key, value = reached([1, 1, 1, 1, 1, 0, 0])
    assert query[1:] == [1, 1, 1, 1, 0, 0]  # the first token's softmax of one is constant
    assert key == value == [1, 1, 1, 1, 1, 0, 0]
    query, key, value = reached([0, 0, 0, 0, 1, 0, 0])  # the second response
    assert query == [0, 0, 0, 0, 1, 0, 0]
    assert key == value == [1, 1, 0, 0, 1, 0, 0]


def test_large_logits_stay_finite() -> None:
    query, key, value = random_inputs(2, 7, 4, 2)
    mask = visible(packed(7))
    value_and_grad = jax.jit(jax.value_and_grad(lambda q: attend(q, key, value, mask).sum()))
    out, gradient = value_and_grad(1e4 * query)
    assert np.isfinite(out)
    assert np.isfinite(gradient).all()


def test_half_precision_sums_in_float32() -> None:
    query, key, _ = random_inputs(1, 400, 2, 1)
    mask = np.tril(np.ones((1, 400, 400), bool))
    half = (x.astype(jnp.bfloat16) for x in (0 * query, key, np.ones_like(key)))
    out = attend(*half, mask)
    assert out.dtype == jnp.bfloat16
    # 400 weights of 1 sum to 400; sums in bfloat16 stop at 256
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)


def test_eight_devices_compute_what_one_does() -> None:
    mesh = make_mesh(1, 4, 2)
    inputs = random_inputs(4, 7, 4, 2)
    segments = Segments(*(np.tile(x, (2, 1)) for x in packed(7)))
    alone = attend(*inputs, visible(segments))
    with jax.set_mesh(mesh):
        heads = NamedSharding(mesh, P(("replica", "fsdp"), None, "tensor", None))
        there = [jax.device_put(x, heads) for x in inputs]
        mask = visible(Segments(*devices.put(tuple(segments), mesh, "batch")))
        together = attend(*there, mask)
    assert together.sharding.spec == heads.spec
    np.testing.assert_allclose(devices.fetch(together), alone, atol=TOLERANCE)


@pytest.mark.parametrize("window", [0, 3])
def test_nothing_later_in_the_row_is_seen(window: int) -> None:
    """cuDNN is told so, and skips it."""
    segments = packed(19)
    positions = jnp.asarray(np.arange(19) - np.where(segments.own > 1, 4, 0))
    segments = Segments(*map(jnp.asarray, segments))
    seen = attention.visible(segments, positions, window)
    assert not np.triu(seen, 1).any()


@pytest.mark.parametrize("length", [7, 19])
def test_cudnn_is_asked_for_what_the_mask_says(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """The library computes it by matmuls here, from the same arguments."""
    library = jax.nn.dot_product_attention

    def by_matmuls(*inputs: jax.Array, implementation: str, **options: Any) -> Any:
        assert implementation == "cudnn"
        return library(*inputs, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_matmuls)
    mask = visible(packed(length))
    inputs = random_inputs(2, length, 4, 2)
    assert_same(inputs, mask, attention._cudnn, attention._blocked)


def test_a_policy_knows_cudnn_s_forward_kernel_by_its_name() -> None:
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    assert attention.saved(kernels._dot_product_attention_fwd_p_wrapper)
    assert not attention.saved(kernels._dot_product_attention_bwd_p_wrapper)

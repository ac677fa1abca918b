"""Log-probs and entropies: by hand, against log_softmax, over a wide and a split vocabulary."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.distributed import devices, sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models.logprobs import logprobs_and_entropy


def token_logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return logprobs_and_entropy(logits, tokens)[0]


def entropy(logits: jax.Array) -> jax.Array:
    return logprobs_and_entropy(logits, jnp.zeros(logits.shape[:-1], jnp.int32))[1]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(found: jax.Array, wanted: object, tolerance: float = 1e-6) -> None:
    """Float32 keeps seven digits; every test value is of order one."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=tolerance, atol=1e-7)


def test_token_logprobs_by_hand() -> None:
    # softmax of log [1 2 5] is [1 2 5] / 8
    logits = jnp.log(jnp.asarray([[1.0, 2.0, 5.0], [2.0, 2.0, 4.0]]))
    close(token_logprobs(logits, jnp.asarray([2, 0])), [math.log(5 / 8), math.log(2 / 8)])


def test_entropy_by_hand() -> None:
    logits = jnp.asarray([[0.0, 0.0, 0.0, 0.0], [80.0, 0.0, 0.0, 0.0]])
    close(entropy(logits), [math.log(4), 0.0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logprobs_and_entropy_are_those_of_log_softmax_in_float32(dtype: str) -> None:
    logits = jnp.asarray(4 * normal(0, 2, 5, 300), dtype)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 300, (2, 5)))
    reference = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(reference, tokens[..., None], axis=-1)[..., 0]
    found = token_logprobs(logits, tokens)
    assert found.dtype == entropy(logits).dtype == jnp.float32
    close(found, picked)
    close(entropy(logits), -jnp.sum(jnp.exp(reference) * reference, axis=-1))


def test_logprobs_stay_finite_where_exp_would_overflow() -> None:
    logits = jnp.asarray([[1e4, -1e4, 0.0]])
    close(token_logprobs(logits, jnp.asarray([1])), [-2e4])
    assert np.isfinite(entropy(logits)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradients_are_those_of_log_softmax(dtype: str) -> None:
    logits = jnp.asarray(4 * normal(3, 6, 300), dtype)
    tokens = jnp.asarray(np.random.default_rng(4).integers(0, 300, 6))
    weights = jnp.asarray(normal(5, 2, 6))

    def ours(logits: jax.Array) -> jax.Array:
        logprobs, entropy = logprobs_and_entropy(logits, tokens)
        return jnp.sum(weights[0] * logprobs + weights[1] * entropy)

    def reference(logits: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
        picked = jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
        return jnp.sum(weights[0] * picked) - jnp.sum(
            weights[1] * jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        )

    found, wanted = jax.grad(ours)(logits), jax.grad(reference)(logits)
    assert found.dtype == logits.dtype
    scale = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(
        np.asarray(found, np.float32), np.asarray(wanted, np.float32), rtol=2 * scale, atol=scale
    )


@pytest.mark.parametrize("width", [49_152, 49_157])
def test_sums_over_a_wide_vocabulary_keep_float32(width: int) -> None:
    logits, tokens = 3 * normal(5, 4, width), np.asarray([0, 1, 77, width - 1], np.int32)
    logprobs, entropies = jax.jit(logprobs_and_entropy)(logits, tokens)
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprobs, exact[np.arange(4), tokens], atol=5e-6)
    np.testing.assert_allclose(entropies, -(np.exp(exact) * exact).sum(-1), atol=5e-6)


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_vocabulary_split_over_devices_gives_the_same_and_stays_split(tensor: int) -> None:
    logits, tokens = 2 * normal(2, 8, 64), np.arange(8, dtype=np.int32) * 7
    mesh = make_mesh(1, 8 // tensor, tensor)

    @jax.jit
    def both(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return token_logprobs(logits, tokens), entropy(logits)

    def place(x: np.ndarray, *axes: str) -> jax.Array:
        specs = P(*(sharding.MESH_AXES[axis] for axis in axes))
        return jax.device_put(x, NamedSharding(mesh, specs))

    with jax.set_mesh(mesh):
        placed = place(logits, "batch", "vocabulary"), place(tokens, "batch")
        program = both.lower(*placed).compile()
        assert "all-gather" not in program.as_text()
        found = jax.device_get(both(*placed))
    wanted = both(jnp.asarray(logits), jnp.asarray(tokens))
    for one, other in zip(found, wanted, strict=True):
        close(one, other)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_compute_the_same(platform: str) -> None:
    logits, tokens = normal(6, 5, 64), jnp.asarray([0, 63, 7, 8, 9])
    wanted = logprobs_and_entropy(jnp.asarray(logits), tokens)
    with devices.compiling_for(platform):
        found = logprobs_and_entropy(jnp.asarray(logits), tokens)
    for one, other in zip(found, wanted, strict=True):
        close(one, other)

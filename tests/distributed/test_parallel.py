"""Functions over data shards and replicas: who sees which part, and where gradients are summed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gad_jax.distributed import devices, mesh, parallel
from gad_jax.distributed.mesh import make_mesh


def double(x: jax.Array) -> jax.Array:
    return 2 * x


def test_without_a_mesh_there_is_one_shard() -> None:
    assert parallel.shard_map(double, P(), P()) is double
    assert parallel.replica_map(double, P(), P()) is double
    x = jnp.arange(3.0)
    assert parallel.psum_over_replicas(x) is x
    assert parallel.all_gather_over_replicas(x) is x


def test_every_data_shard_has_its_part_and_shared_gradients_are_summed() -> None:
    grid = make_mesh(2, 2, 2)
    weights, values = np.arange(3.0, dtype=np.float32), np.arange(24.0, dtype=np.float32)
    with jax.set_mesh(grid):
        rows = devices.put(values.reshape(8, 3), grid, "batch")
        shared = devices.put(weights, grid)

        def one(weights: jax.Array, rows: jax.Array) -> jax.Array:
            assert rows.shape == (2, 3)  # a quarter of the eight rows
            return jnp.sum(weights * rows)[None]

        split = parallel.batch_spec(0)
        over_shards = parallel.shard_map(one, (P(), split), split)
        parts = jax.jit(over_shards)(shared, rows)
        gradient = jax.jit(jax.grad(lambda w: over_shards(w, rows).sum()))(shared)
        found = devices.fetch((parts, gradient))
    by_hand = (values.reshape(8, 3) * weights).reshape(4, 6).sum(axis=1)
    np.testing.assert_allclose(found[0], by_hand)
    np.testing.assert_allclose(found[1], values.reshape(8, 3).sum(axis=0))


def test_replicas_sum_and_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "SHARDS_STAY", True)
    grid = make_mesh(2, 4, 1)

    def one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return parallel.psum_over_replicas(x), parallel.all_gather_over_replicas(x)[None]

    with jax.set_mesh(grid):
        x = jax.device_put(np.asarray([1.0, 2.0, 10.0, 20.0], np.float32), P("replica"))
        over_replicas = parallel.replica_map(one, P("replica"), (P(), P("replica")))
        total, gathered = devices.fetch(jax.jit(over_replicas)(x))
    assert total.tolist() == [11, 22]
    assert gathered.tolist() == [[1, 2, 10, 20]] * 2


def test_one_replica_is_no_map() -> None:
    with jax.set_mesh(make_mesh(1, 8, 1)):
        assert parallel.replica_map(double, P(), P()) is double

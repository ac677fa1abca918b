"""The first broken leaf of a network, by its path."""

import jax.numpy as jnp

from gad_jax.training import stops
from gad_jax.types import TrainState


def test_broken_leaves_are_taken_out_of_the_metrics_and_named() -> None:
    nothing = jnp.zeros(())
    generator = {"embedding": nothing, "layers": {"query": {"bias": nothing, "kernel": nothing}}}
    state = TrainState(
        nothing, nothing, generator, None, {"score": {"bias": nothing}}, None, None, nothing
    )
    metrics = {"generator/broken_leaf": 2.0, "discriminator/broken_leaf": -1.0, "entropy": 1.0}
    assert stops.take_broken_leaves(metrics, state) == {"generator": "layers/query/kernel"}
    assert metrics == {"entropy": 1.0}
    assert stops.take_broken_leaves(metrics, state) == {}

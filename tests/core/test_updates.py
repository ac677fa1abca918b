"""Steps that are skipped: which network moves, what is counted and named, and what comes after."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core import steps, updates
from gad_jax.core.optimizer import Schedule, adamw
from gad_jax.core.program import Program
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.settings.optimizer import Optimizer
from gad_jax.types import TrainState
from tests.core.builders import GAD, MESH_GAD, history, host, identical, rows, start, texts


def test_steps_count() -> None:
    assert [int(outcome.state.step) for outcome in history().outcomes] == [1, 2, 3]
    assert history().outcomes[-1].metrics["skips/total"] == 0


def spoiled(state: TrainState, how: str) -> TrainState:
    """Returns the state with a network that cannot take a step."""
    generator, discriminator = state.generator, state.discriminator
    if how == "NaN in the discriminator":
        scale = discriminator["final_norm"]["scale"].at[0].set(jnp.nan)
        discriminator = discriminator | {"final_norm": {"scale": scale}}
    elif how == "NaN in the generator":
        scale = generator["final_norm"]["scale"].at[0].set(jnp.nan)
        generator = generator | {"final_norm": {"scale": scale}}
    else:
        # The loss is finite, about 1e25; the square of the gradient is not.
        kernel = discriminator["score"]["kernel"] * 1e25
        discriminator = discriminator | {"score": discriminator["score"] | {"kernel": kernel}}
    return state._replace(generator=generator, discriminator=discriminator)


FAILURES = ["NaN in the discriminator", "NaN in the generator", "overflow of a gradient"]


@pytest.mark.parametrize("how", FAILURES)
def test_a_step_that_is_not_finite_moves_nothing_and_the_next_continues(how: str) -> None:
    batch = [(rows(texts(seed), "pairs"), rows(texts(seed), "samples")) for seed in range(3)]
    state, _ = steps.gad_step(GAD, start(), *batch[0])
    healthy = jax.tree.map(jnp.copy, state)
    bad = spoiled(state, how)
    before = host((bad, {})).state
    bad, metrics = steps.gad_step(GAD, bad, *batch[1])
    after = host((bad, {})).state
    identical(after._replace(step=0, skips=0), before._replace(step=0, skips=0))
    assert after.step == before.step + 1
    assert after.skips.tolist() == [1, 1]
    assert (metrics["skips/total"], metrics["skips/consecutive"]) == (1, 1)
    if how == "overflow of a gradient":
        assert np.isfinite(metrics["discriminator/loss"])
        assert np.isinf(metrics["discriminator/gradient_norm"])
    # once more, then with the healthy networks: as if the two had not been
    bad, metrics = steps.gad_step(GAD, bad, *batch[1])
    assert (metrics["skips/total"], metrics["skips/consecutive"]) == (2, 2)
    good = bad._replace(generator=jax.tree.map(jnp.copy, healthy.generator))
    good = good._replace(discriminator=jax.tree.map(jnp.copy, healthy.discriminator))
    good, metrics = steps.gad_step(GAD, good, *batch[2])
    assert (metrics["skips/total"], metrics["skips/consecutive"]) == (2, 0)
    wanted = host(steps.gad_step(GAD, healthy, *batch[2]))
    identical(
        host((good, {})).state._replace(step=0, skips=0), wanted.state._replace(step=0, skips=0)
    )


def test_seqkd_skips_as_well() -> None:
    bad = spoiled(start(), "NaN in the generator")
    before = host((bad, {})).state
    after = host(steps.seqkd_step(GAD, bad, rows(texts(), "teacher")))
    identical(after.state._replace(step=0, skips=0), before._replace(step=0, skips=0))
    assert after.state.skips.tolist() == [1, 1]


def test_all_shards_of_a_mesh_skip_together() -> None:
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        bad = start(mesh=mesh)
        # one number, on one shard of the embedding: the rest of the network is healthy
        table = jax.device_get(bad.discriminator["embedding"]).copy()
        table[np.asarray(texts().prompts[0][0]), 0] = np.nan
        table = jax.device_put(table, bad.discriminator["embedding"].sharding)
        bad = bad._replace(discriminator=bad.discriminator | {"embedding": table})
        before = devices.fetch(bad._replace(key=None))
        batch = (rows(texts(), which, mesh=mesh) for which in ("pairs", "samples"))
        state, _ = steps.gad_step(MESH_GAD, bad, *batch)
        after = devices.fetch(state._replace(key=None))
    identical(after._replace(step=0, skips=0), before._replace(step=0, skips=0))
    assert after.skips.tolist() == [1, 1]


@pytest.mark.parametrize("how", FAILURES)
def test_the_first_broken_leaf_of_the_network_at_fault_is_named(how: str) -> None:
    batch = rows(texts(1), "pairs"), rows(texts(1), "samples")
    _, metrics = steps.gad_step(GAD, spoiled(start(), how), *batch)
    broken = {part: int(metrics[f"{part}/broken_leaf"]) for part in ("generator", "discriminator")}
    part = "generator" if how == "NaN in the generator" else "discriminator"
    assert broken[part] >= 0
    if part == "generator":
        assert broken["discriminator"] == -1


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize(("kind", "value"), [("mu", np.nan), ("nu", np.inf)])
def test_a_moment_that_is_not_finite_moves_neither_network(
    network: str, kind: str, value: float
) -> None:
    def spoil(path: Any, leaf: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path)
        return leaf.at[1].set(value) if f".{kind}['final_norm']" in names else leaf

    state = start()
    moments = getattr(state, f"{network}_optimizer")
    moments = jax.tree_util.tree_map_with_path(spoil, moments)
    state = state._replace(**{f"{network}_optimizer": moments})
    before = host((state, {})).state
    batch = rows(texts(), "pairs"), rows(texts(), "samples")
    after = host(steps.gad_step(GAD, state, *batch))
    identical(after.state._replace(step=0, skips=0), before._replace(step=0, skips=0))
    assert after.state.skips.tolist() == [1, 1]
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(after.state.generator)]
    found = {part: int(after.metrics[f"{part}/broken_update"]) for part in PARTS}
    assert names[found.pop(network)] == "['final_norm']['scale']"
    assert {*found.values()} == {-1}
    assert all(int(after.metrics[f"{part}/broken_leaf"]) == -1 for part in PARTS)


PARTS = ("generator", "discriminator")


def test_looking_at_an_update_stores_nothing_as_large_as_a_network() -> None:
    rule = adamw(Optimizer(), 1e-3)
    params: Any = {"kernel": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    moments = jax.eval_shape(rule.init, params)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    state = TrainState(number, number, params, moments, None, None, None, number)
    skips = jax.ShapeDtypeStruct((2,), jnp.int32)

    def commit(state: TrainState, gradients: Any, loss: jax.Array) -> Any:
        update = updates.Update(loss, gradients, {})
        program = dataclasses.replace(GAD, generator_optimizer=rule)
        return updates.commit(program, state, update, None, {})

    lowered = jax.jit(commit, donate_argnums=0).lower(state._replace(skips=skips), params, number)
    compiled = lowered.compile()
    size = 4 * 2**20
    assert compiled.memory_analysis().alias_size_in_bytes >= 3 * size
    assert compiled.memory_analysis().temp_size_in_bytes < size / 8
    # Once for the norm, four arrays to look, then four to read and three to write.
    assert compiled.cost_analysis()["bytes accessed"] < 16.1 * size


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("devices_of_mesh", "micro_batches", "read"),
    [(1, 1, "bfloat16"), (1, 2, "bfloat16"), (8, 1, "float32"), (8, 2, "bfloat16")],
)
def test_kernels_are_rounded_once_and_their_gradients_summed_in_float32(
    platform: str, devices_of_mesh: int, micro_batches: int, read: str
) -> None:
    """In bfloat16, 256 + 1 is 256."""
    network = dataclasses.replace(GAD.generator, compute_dtype="bfloat16")
    numbers = jnp.asarray([[256.0] * 3, [1.0] * 3], jnp.bfloat16)[:micro_batches]
    packed = rows(texts(), "teacher", micro_batches)

    def loss(params: Any, micro: Any, numbers: jax.Array) -> Any:
        chosen = numbers[jnp.minimum(micro.groups[0], micro_batches - 1)]
        assert params["layers"]["kernel"].dtype == read
        product = params["layers"]["kernel"] * chosen
        return jnp.sum(product.astype(jnp.float32)), product

    packed = packed._replace(groups=jnp.arange(micro_batches)[:, None])
    mesh = make_mesh(devices=jax.devices()[:devices_of_mesh])
    with devices.compiling_for(platform), jax.set_mesh(mesh):
        params: Any = {"layers": {"kernel": jnp.ones(3)}}
        _, gradients, products = updates.accumulate(loss, network, params, packed, numbers)
    gradient = gradients["layers"]["kernel"]
    assert gradient.dtype == jnp.float32
    assert gradient.tolist() == [256.0 + (micro_batches == 2)] * 3
    assert products.shape == (micro_batches, 3)


def test_a_schedule_is_another_rate_in_each_step() -> None:
    """Step 1 of four that fall by a quarter each: the rates of both networks are 3/4 of theirs."""
    optimizer = Optimizer(max_gradient_norm=0.2, weight_decay=1e-2, epsilon=1e-2)

    def program(rate: float) -> Program:
        rule = adamw(optimizer, rate)
        return dataclasses.replace(GAD, generator_optimizer=rule, discriminator_optimizer=rule)

    def begun() -> TrainState:
        state = start()
        moments = {
            name: adamw(optimizer, 1.0).init(getattr(state, name))
            for name in ("generator", "discriminator")
        }
        return state._replace(
            step=jnp.int32(6), **{f"{name}_optimizer": of for name, of in moments.items()}
        )

    falling = dataclasses.replace(program(0.04), schedule=Schedule(5, 9, "linear"))
    batch = rows(texts(0), "pairs"), rows(texts(0), "samples")
    found, metrics = steps.gad_step(falling, begun(), *batch)
    wanted, plain = steps.gad_step(program(0.03), begun(), *batch)
    assert metrics["learning_rate_factor"] == 0.75
    assert "learning_rate_factor" not in plain
    for name in ("generator", "discriminator"):
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        jax.tree.map(close, getattr(found, name), getattr(wanted, name))
        identical(getattr(found, f"{name}_optimizer"), getattr(wanted, f"{name}_optimizer"))

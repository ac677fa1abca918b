"""Mixtures of experts: against all experts for all tokens, by hand, and on eight devices."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.core import steps
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import decoder, experts, families, weights
from gad_jax.models.config import Experts
from gad_jax.types import Segments
from tests.core import builders
from tests.models import networks
from tests.models.networks import NETWORKS
from tests.rollout.model import PROMPTS, Model, assert_same

# The heads of this one divide over four devices, like its experts.
MOE = NETWORKS["qwen3-moe"] | {"num_key_value_heads": 4}
MESHES = [(1, 2, 4), (1, 4, 2)]


def all_experts(x: Any, weight: Any, chosen: Any, kernels: Any) -> jax.Array:
    """What a mixture is: every expert computes every token, the weights choose."""
    gate, up, down = kernels
    into = "nd,edf->enf"
    y = jax.nn.silu(jnp.einsum(into, x, gate)) * jnp.einsum(into, x, up)
    y = jnp.einsum("enf,efd->end", y, down)
    of_expert = (
        jnp.zeros((len(x), len(gate) + 1)).at[jnp.arange(len(x))[:, None], chosen].add(weight)
    )
    return jnp.einsum("ne,end->nd", of_expert[:, :-1], y)


@pytest.mark.parametrize("case", ["random", "all of one expert", "none here", "one token"])
def test_values_and_gradients_are_those_of_all_experts(case: str) -> None:
    random = np.random.default_rng(0)
    count, choices, width, inner, tokens = 5, 3, 16, 24, 1 if case == "one token" else 61
    # experts `count` and more are elsewhere
    chosen = np.stack([random.permutation(count + 2)[:choices] for _ in range(tokens)])
    chosen = np.minimum(chosen, count)
    if case == "all of one expert":
        chosen[:] = [count, 2, count]
    if case == "none here":
        chosen[:] = count
    shapes = (tokens, width), (tokens, width), *[(count, width, inner)] * 2, (count, inner, width)
    x, onto, *kernels = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    weight = random.random(chosen.shape).astype(np.float32)

    def found(x: Any, weight: Any, kernels: Any) -> jax.Array:
        y = experts._mix(jax.nn.silu, 8, x, weight, jnp.asarray(chosen), tuple(kernels))
        return jnp.sum(y * onto)

    def wanted(x: Any, weight: Any, kernels: Any) -> jax.Array:
        return jnp.sum(all_experts(x, weight, chosen, kernels) * onto)

    both = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(x, weight, kernels)
        for f in (found, wanted)
    ]
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        if b.shape == weight.shape:  # nothing flows to the weight of an expert elsewhere
            b = jnp.where(chosen < count, b, 0)
        scale = max(float(jnp.abs(b).max()), 1.0)  # float32: the same sums in another order
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)


def test_routing_by_hand() -> None:
    logits = jnp.log(jnp.asarray([[1.0, 4.0, 2.0, 1.0], [5.0, 1.0, 1.0, 3.0]]))
    weight, chosen = experts.route(Experts(4, 2, 8, normalised=False), logits)
    assert chosen.tolist() == [[1, 2], [0, 3]]
    np.testing.assert_allclose(weight, [[0.5, 0.25], [0.5, 0.3]], rtol=1e-6)
    weight, _ = experts.route(Experts(4, 2, 8, normalised=True), logits)
    np.testing.assert_allclose(weight, [[2 / 3, 1 / 3], [5 / 8, 3 / 8]], rtol=1e-6)


def test_what_is_recomputed_changes_no_gradient() -> None:
    config = families.read(MOE)
    params = jax.tree.map(jnp.asarray, networks.random_params(config))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 512, (2, 20)))
    own = jnp.ones_like(ids)
    rows = ids, jnp.broadcast_to(jnp.arange(20), ids.shape), Segments(own, own)

    def gradient(remat: Any) -> Any:
        one = dataclasses.replace(config, remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.sum(decoder.logits(one, p, *rows) ** 2)))(params)

    wanted = gradient("none")
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(wanted))
    for remat in ("full", "dots"):
        builders.close(gradient(remat), wanted, 1e-5)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.write(tmp_path_factory.mktemp("moe") / "model", MOE)


@pytest.fixture(scope="module")
def alone(directory: Path) -> tuple[Any, Any]:
    model = Model(directory, make_mesh(1, 1, 1, jax.devices()[:1]))
    sampled = model.answer()
    return sampled, model.forced(PROMPTS, sampled)


@pytest.mark.parametrize("shape", MESHES)
def test_eight_devices_compute_and_sample_what_one_does(
    directory: Path, alone: tuple[Any, Any], shape: tuple[int, int, int]
) -> None:
    model = Model(directory, make_mesh(*shape))
    held = model.params["layers"]["experts"]["gate"]["kernel"].sharding.shard_shape((2, 8, 32, 24))
    assert held == (2, 8 // shape[2], 32 // shape[1], 24)
    sampled = model.answer()
    assert_same(sampled, alone[0])
    for found, wanted in zip(model.forced(PROMPTS, sampled), alone[1], strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def mixture(config: Any) -> Any:
    chosen = Experts(8, 2, 12, normalised=True)
    return dataclasses.replace(config, kv_heads=4, experts=chosen)


MIXTURES = dataclasses.replace(
    builders.MESH_GAD,
    generator=mixture(builders.MESH_GAD.generator),
    discriminator=mixture(builders.MESH_GAD.discriminator),
)


@functools.cache
def gad_step(shape: tuple[int, int, int]) -> Any:
    """Returns the gradients of generator and discriminator in a GAD step, and its metrics."""
    both = MIXTURES.generator, MIXTURES.generator, MIXTURES.discriminator
    made = tuple(networks.random_params(one, seed) for seed, one in enumerate(both))
    grid = make_mesh(*shape, jax.devices()[: math.prod(shape)])
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(grid):
        patch.setattr(builders, "networks", lambda: made)
        state = builders.start(MIXTURES, grid)
        rows = (builders.rows(builders.texts(), w, 1, grid) for w in ("pairs", "samples"))
        state, metrics = steps.gad_step(MIXTURES, state, *rows)
        kept = state.generator_optimizer[0], state.discriminator_optimizer[0]
        return devices.fetch((kept, metrics))


@pytest.mark.parametrize(
    "shape", [(2, 2, 2), *(pytest.param(shape, marks=pytest.mark.slow) for shape in MESHES)]
)
def test_eight_devices_learn_what_one_does(shape: tuple[int, int, int]) -> None:
    (found, metrics), (wanted, expected) = gad_step(shape), gad_step((1, 1, 1))
    builders.close(found, wanted, 1e-4)  # an advantage divides by a spread of scores
    for part, gradient in zip(("generator", "discriminator"), found, strict=True):
        name = f"{part}/gradient_norm"
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4)
        leaves = jax.tree.leaves(gradient["layers"]["experts"])
        assert all(np.abs(leaf).max() > 0 for leaf in leaves)


def test_a_tensor_axis_that_cuts_experts_is_refused(tmp_path: Path) -> None:
    hf = MOE | {"num_experts": 6}
    directory = networks.write(tmp_path / "model", hf)
    with pytest.raises(UserError, match=r"tensor=4 of the mesh does not divide the 6 experts"):
        weights.load(directory, make_mesh(1, 2, 4))

"""Where arrays live: one row per parameter, a mesh that fits, whole arrays in and out, compiles."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.core.moments import Adam8
from gad_jax.core.optimizer import adamw
from gad_jax.distributed import devices, sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import decoder, families
from gad_jax.models.config import DecoderConfig, Lora, alike
from gad_jax.settings.lora import TARGETS
from gad_jax.settings.optimizer import Optimizer
from tests.models.networks import NETWORKS


def network(family: str, **switches: Any) -> DecoderConfig:
    return DecoderConfig(
        family=family,
        vocabulary=64,
        width=16,
        mlp_width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_width=4,
        kinds=alike(1e4),
        norm_epsilon=1e-6,
        max_positions=64,
        qkv_bias=family == "qwen2",
        qk_norm="head" if family == "qwen3" else "none",
        **switches,
    )


def networks() -> list[DecoderConfig]:
    kinds = ({"tied": True}, {"tied": False}, {"head": "score"}, {"head": "score", "tied": True})
    read = [families.read(hf) for hf in NETWORKS.values()]
    whole = [dataclasses.replace(config, **kind) for config in read for kind in kinds]
    whole += [config.decoding for config in read]
    with devices.compiling_for("gpu"):
        whole += [config.decoding for config in read]
    lora = Lora(rank=2, alpha=32.0, targets=TARGETS)
    bases = ("none", "int8", "nf4")
    return whole + [dataclasses.replace(network("qwen2"), lora=lora, quantisation=b) for b in bases]


def paths(tree: Any) -> dict[str, Any]:
    return {sharding.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_every_parameter_has_exactly_one_row() -> None:
    used = set()
    for config in networks():
        for path, leaf in paths(decoder.abstract(config)).items():
            rows = [row for row in sharding.PARAMETER_AXES if re.fullmatch(row, path)]
            assert len(rows) == 1, (config.family, path, rows)
            axes = sharding.parameter_axes(path)
            assert len(axes) == leaf.ndim, path
            on_mesh = [sharding.MESH_AXES[axis] for axis in axes if sharding.MESH_AXES[axis]]
            assert len(set(on_mesh)) == len(on_mesh), f"{path} splits twice over one mesh axis"
            used |= {*rows}
    assert used == {*sharding.PARAMETER_AXES}, "a row that no family needs"


@pytest.mark.parametrize("path", ["layers/rotation/kernel", "layers/query", "head/bias", "x/score"])
def test_an_unlisted_parameter_is_an_error(path: str) -> None:
    with pytest.raises(KeyError, match=f"{path}: 0 rows of PARAMETER_AXES match"):
        sharding.parameter_axes(path)


def test_a_parameter_with_two_rows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sharding.PARAMETER_AXES, "embed.*", ("vocabulary", "embed"))
    with pytest.raises(KeyError, match="embedding: 2 rows"):
        sharding.parameter_specs({"embedding": 0})


def test_specs_are_the_two_tables_together() -> None:
    specs = paths(sharding.parameter_specs(decoder.abstract(network("qwen2"))))
    assert specs["embedding"] == P("tensor", "fsdp")
    assert specs["layers/query/kernel"] == P(None, "fsdp", "tensor")
    assert specs["layers/query/bias"] == P(None, "tensor")
    assert specs["layers/down/kernel"] == P(None, "tensor", "fsdp")
    assert specs["final_norm/scale"] == P(None)
    assert specs["head/kernel"] == P("fsdp", "tensor")


def test_without_a_mesh_there_is_nothing_to_decide() -> None:
    x = jnp.arange(4.0)
    assert sharding.spec("batch", None) is None
    assert sharding.reshard(x, "batch") is x
    assert sharding.gather(x, "embed") is x
    assert sharding.spec_of(x) is None
    assert sharding.parts(x) == 1


def test_how_an_array_is_laid_out() -> None:
    mesh = make_mesh(2, 2, 2)
    layout = P(("replica", "fsdp"), None, "tensor")
    with jax.set_mesh(mesh):
        x = jax.device_put(np.zeros((8, 3, 4)), NamedSharding(mesh, layout))
        assert sharding.spec_of(x) == layout
        assert sharding.parts(x) == 8
        found = [sharding.parts(x, slice(axis, axis + 1)) for axis in range(3)]
    assert found == [4, 1, 2]


def test_gather_undoes_fsdp_alone() -> None:
    mesh = make_mesh(1, 4, 2)
    kernel = np.arange(32.0, dtype=np.float32).reshape(8, 4)
    with jax.set_mesh(mesh):
        there = jax.device_put(kernel, NamedSharding(mesh, P("fsdp", "tensor")))
        whole = jax.jit(lambda x: sharding.gather(x, "embed", "mlp"))(there)
        assert sharding.spec("batch", None) == P(("replica", "fsdp"), None)
    assert {shard.data.shape for shard in there.addressable_shards} == {(2, 2)}
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8, 2)}
    np.testing.assert_array_equal(devices.fetch(whole), kernel)


def on(mesh: Mesh, config: DecoderConfig) -> Any:
    """Returns random parameters, laid out as the table says."""
    params = decoder.init(config, jax.random.key(0))
    specs = sharding.parameter_specs(params)
    return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), params, specs)


@pytest.mark.parametrize(
    ("head", "dtype"), [("vocabulary", "float32"), ("score", "bfloat16"), ("score", "float8")]
)
def test_optimizer_moments_live_with_their_parameters(head: str, dtype: Any) -> None:
    mesh = make_mesh(1, 4, 2)
    config = dataclasses.replace(network("qwen2"), head=head)
    optimizer = adamw(Optimizer(moments=dtype), 1e-3)
    with jax.set_mesh(mesh):
        params = on(mesh, config)
        moments = jax.jit(optimizer.init)(params)
        _, moments = jax.jit(optimizer.update)(params, moments, params)
        expected = sharding.with_shardings(jax.eval_shape(optimizer.init, params), mesh)
    adam = moments[1][0]
    assert isinstance(adam, Adam8 if dtype == "float8" else optax.ScaleByAdamState)
    for tree in (adam.mu, adam.nu):
        found = paths(tree)
        for path, leaf in paths(params).items():
            assert found[path].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), path
            assert found[path].sharding.spec == sharding.parameter_spec(path)
    # what a checkpoint is read into has the shapes and places of what was made
    for made, asked in zip(jax.tree.leaves(moments), jax.tree.leaves(expected), strict=True):
        assert (made.shape, made.dtype) == (asked.shape, asked.dtype)
        assert made.sharding.is_equivalent_to(asked.sharding, made.ndim)

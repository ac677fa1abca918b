"""States for the tests of checkpoints, small and spread over a mesh."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.training import digest
from gad_jax.types import TrainState

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_mesh(fsdp: int = 4, tensor: int = 2) -> Mesh:
    devices = np.asarray(jax.devices()[: fsdp * tensor]).reshape(fsdp, tensor)
    return Mesh(devices, ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2)


def make_params(mesh: Mesh, seed: int, width: int = 16) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    kernel = NamedSharding(mesh, P(None, "fsdp", "tensor"))
    scale = NamedSharding(mesh, P())
    return {
        "layers": {
            "kernel": jax.device_put(rng.normal(size=(3, width, 8)).astype(np.float32), kernel)
        },
        "scale": jax.device_put(rng.normal(size=5).astype(np.float32), scale),
    }


def make_state(mesh: Mesh, seed: int = 0, width: int = 16, reference: bool = True) -> TrainState:
    generator, discriminator = make_params(mesh, seed, width), make_params(mesh, seed + 100, width)

    def build(generator: Any, discriminator: Any) -> TrainState:
        return TrainState(
            step=jnp.int32(seed),
            key=jax.random.key(seed),
            generator=generator,
            generator_optimizer=OPTIMIZER.init(generator),
            discriminator=discriminator,
            discriminator_optimizer=OPTIMIZER.init(discriminator),
            reference=jax.tree.map(jnp.copy, generator) if reference else None,
            skips=jnp.zeros(2, jnp.int32),
        )

    with jax.set_mesh(mesh):
        return jax.jit(build)(generator, discriminator)


def abstract(tree: Any, mesh: Mesh | None = None) -> Any:
    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding if mesh is None else NamedSharding(mesh, leaf.sharding.spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def host(tree: Any) -> dict[str, bytes]:
    """Returns the bits of every leaf by path."""
    return {name: np.asarray(x).tobytes() for name, x in digest.plain_leaves(tree).items()}


def flip_array(directory: Path, array: jax.Array) -> None:
    """Flips one bit of the array's data: an array of some size is stored as it is."""
    needle = np.asarray(array.addressable_shards[0].data).tobytes()
    flipped = 0
    for path in directory.glob("state/**/d/*"):
        content = bytearray(path.read_bytes())
        place = content.find(needle)
        if place >= 0:
            content[place + 5] ^= 0x10
            path.write_bytes(content)
            flipped += 1
    assert flipped

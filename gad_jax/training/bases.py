"""The frozen base of networks with adapters: loading it, sharing it, knowing it again.

A checkpoint of such a run holds adapters alone. They mean nothing on another base, so it also holds
the identity of the base that they were trained on.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gad_jax.base.errors import UserError
from gad_jax.distributed import processes, sharding
from gad_jax.models import adapters, checksums, peft, quantised, source, weights
from gad_jax.models.config import DecoderConfig
from gad_jax.settings.config import Config
from gad_jax.training import randomness
from gad_jax.types import Frozen, Params

Networks = tuple[DecoderConfig, DecoderConfig]
"""The configs of generator and discriminator."""


def discriminator_path(config: Config) -> str:
    """Returns the name of the model that the discriminator starts from."""
    return config.discriminator.path or config.student.path


def path_of(config: Config, network: DecoderConfig) -> str:
    """Returns the name of the model that a network of the run starts from."""
    return discriminator_path(config) if network.head == "score" else config.student.path


def belongs(network: DecoderConfig) -> Callable[[str], bool]:
    """Returns which parameters of a directory the network takes: a discriminator has no
    vocabulary head."""
    return lambda path: network.head == "vocabulary" or not path.startswith("head/")


def dtype(config: Config, network: DecoderConfig) -> str:
    """Returns the dtype of a base's embedding and head, and of kernels that are not quantised."""
    chosen = config.lora.base_dtype
    return network.compute_dtype if chosen == "auto" or config.lora.is_quantised else chosen


def is_shared(config: Config, networks: Networks) -> bool:
    """Returns whether both networks have adapters on one base: of the same model, by name."""
    generator, discriminator = networks
    same = discriminator_path(config) == config.student.path
    return generator.lora is not None and discriminator.lora is not None and same


def load(config: Config, networks: Networks, mesh: Mesh) -> Frozen:
    """Returns the bases of the run's networks with adapters; one for both where they share it."""
    found = [load_one(config, network, mesh) if network.lora else None for network in networks[:1]]
    if networks[1].lora is not None and not is_shared(config, networks):
        found.append(load_one(config, networks[1], mesh))
    return Frozen(*found)


def load_one(config: Config, network: DecoderConfig, mesh: Mesh) -> Params:
    """Returns the base of one network; what is no kernel stays float32."""

    def wanted(path: str) -> bool:
        return belongs(network)(path) and not path.startswith("score/")

    directory, kind = source.resolve(path_of(config, network)), dtype(config, network)
    if network.quantisation != "none":
        quantised.check(network, mesh)
    return weights.load(directory, mesh, kind, wanted, adapters.is_vector, network.quantisation)[1]


def abstract(config: Config, networks: Networks, mesh: Mesh) -> Frozen:
    """Returns the shapes of `load`."""

    def one(network: DecoderConfig) -> Params | None:
        if network.quantisation != "none":
            quantised.check(network, mesh)
        base, _ = adapters.abstract(network, jnp.dtype(dtype(config, network)))
        return base and sharding.placed(base, mesh)

    own = None if is_shared(config, networks) else one(networks[1])
    return Frozen(one(networks[0]), own)


def refuse_runs(networks: Networks, student: str | None, judge: str | None) -> None:
    """Raises UserError where a network with adapters starts from a run of this name: its
    checkpoints come and go, and a base must stay."""
    for network, name in zip(networks, (student, judge), strict=True):
        if network.lora is not None and name is not None:
            part = "discriminator" if network.head == "score" and name != student else "student"
            raise UserError(
                f"--{part}.path={name} is a run, whose checkpoints come and go, and adapters need "
                f"a base that stays; write it with python -m gad_jax.export {name} "
                f"--out=DIRECTORY and give DIRECTORY/{part}"
            )


def fresh_adapters(config: Config, network: DecoderConfig, mesh: Mesh) -> Params:
    """Returns the adapters that a network starts from: new ones, or those of --lora.adapter."""
    if config.lora.adapter and network.head == "vocabulary":
        params = peft.read(Path(config.lora.adapter).expanduser(), network)
    else:
        key = randomness.adapters_key(config.seed, network.head)
        params = adapters.init(network, key)

    def place(leaf: jax.ShapeDtypeStruct, value: object) -> jax.Array:
        where: NamedSharding = leaf.sharding  # pyright: ignore[reportAssignmentType]
        host = np.asarray(value)  # jax would place it on the devices of all processes
        return jax.make_array_from_callback(leaf.shape, where, lambda index: host[index])

    return jax.tree.map(place, sharding.placed(params, mesh), params)


def identities(config: Config, networks: Networks) -> dict[str, str]:
    """Returns what tells the bases of a run from others, by network; {} for a run without any.

    All processes call it; the first one reads the files.
    """
    parts = dict(zip(("generator", "discriminator"), networks, strict=True))
    paths = {name: path_of(config, each) for name, each in parts.items() if each.lora}

    def read() -> dict[str, str]:
        known = {path: checksums.identity(source.resolve(path)) for path in set(paths.values())}
        if config.lora.is_quantised:
            known = {path: f"{known[path]} {config.lora.base_dtype}" for path in known}
        return {name: known[path] for name, path in paths.items()}

    return processes.from_first(read) if paths else {}


def check(stored: dict[str, str], found: dict[str, str], run: str) -> None:
    """Raises UserError where a network's base is not the one that its adapters were trained on.

    Both are of `identities`.
    """
    for part, identity in found.items():
        before, now = (each.partition(" ") for each in (stored.get(part, identity), identity))
        if before[0] == now[0] and before != now:
            was, dtype = (each[2] or "float" for each in (before, now))
            raise UserError(
                f"{run} has adapters that were trained on its base in {was}, and this one is in "
                f"{dtype}; give the --lora.base_dtype of the run, or choose another --run_dir"
            )
        if before != now:
            flag = "student" if part == "generator" else "discriminator"
            raise UserError(
                f"{run} has adapters of another base than this --{flag}.path "
                f"(XXH3 {stored[part][:12]}, now {identity[:12]}); give the model that the run "
                "started from, or choose another --run_dir"
            )

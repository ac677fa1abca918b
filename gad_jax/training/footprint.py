"""How much memory the programs of a run take, by arithmetic: at once, and without compiling.

The training state, the decode copy and the KV caches follow from shapes that the run itself uses,
so they are exact; those of evaluations assume prompts like a step's. Temporary memory is an
estimate of what XLA keeps: gradients, activations, and the logits of a chunk. `python -m
gad_jax.plan` compiles the programs instead.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gad_jax.core import layout, updates
from gad_jax.core.program import Program
from gad_jax.distributed import devices, sharding
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import costs, decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import memory, prefill
from gad_jax.settings import baselines
from gad_jax.settings.config import Config
from gad_jax.training import bases, state
from gad_jax.training.rewards import models
from gad_jax.types import Params

Networks = tuple[DecoderConfig, DecoderConfig]


class Need(NamedTuple):
    """What one program holds on a device while it runs: bytes by kind, as in a plan."""

    program: str
    bytes: dict[str, int]

    @property
    def kind(self) -> str:
        """What the program belongs to: a stage, rollout, evaluation or reward."""
        return self.program.partition(": ")[0]

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.bytes.values())


class Lengths(NamedTuple):
    """Tokens of the prompts of one step, [B], and of their responses, [B S + 1]."""

    prompts: np.ndarray
    responses: np.ndarray


def largest(
    config: Config,
    networks: Networks,
    mesh: Mesh,
    lengths: Lengths,
    rewarding: models.Networks = models.NONE,
) -> Need:
    """Returns the program that takes the most memory."""
    found = needs(config, networks, mesh, lengths, rewarding)
    return max(found, key=lambda need: need.total)


def needs(
    config: Config,
    networks: Networks,
    mesh: Mesh,
    lengths: Lengths,
    rewarding: models.Networks = models.NONE,
) -> list[Need]:
    """Returns what each program of a run takes on a device, in the order of the run.

    `rewarding` are its reward models, which stay on the device from start to end.
    """
    found: list[Need] = []
    with jax.set_mesh(mesh):
        frozen = bases.abstract(config, networks, mesh)
        base = devices.device_bytes(frozen)
        for stage in config.stages:
            program = state.make_program(config, stage, *networks)
            held = sizes(program, mesh).device + base
            shown = _of_groups(lengths, baselines.responses(config, stage))
            parts = {
                "weights and moments": held,
                "temporary": _update_bytes(config, program, mesh, shown),
            }
            found.append(Need(f"{stage}: update", parts))
            if stage == "gad":
                found += [
                    Need(f"reward: {name}", {"weights and moments": held, "temporary": working})
                    for name, network in rewarding.items()
                    for working in [_scoring_bytes(config, network, mesh, lengths)]
                ]
            if stage == config.stages[-1]:
                for name, network, batch in decoders(config, program.generator, lengths.prompts):
                    copy = copy_bytes(network, mesh, frozen.generator)
                    kept = {"weights and moments": held, "decode copy": copy}
                    for part, taken in memory.decode_bytes(network, batch, mesh).items():
                        found.append(Need(f"{name}: {part}", kept | taken))
    resident = rewarding_bytes(rewarding, mesh)
    return [
        need._replace(bytes={"reward model": resident} | need.bytes) if resident else need
        for need in found
    ]


def rewarding_bytes(rewarding: models.Networks, mesh: Mesh) -> int:
    """Returns the bytes of the reward models on a device."""
    return sum(devices.device_bytes(models.abstract(each, mesh)) for each in rewarding.values())


def _of_groups(lengths: Lengths, members: int) -> Lengths:
    """Returns the lengths with so many responses to each prompt, more than there are or fewer."""
    columns = np.arange(members) % lengths.responses.shape[1]
    return lengths._replace(responses=lengths.responses[:, columns])


def decoders(
    config: Config, generator: DecoderConfig, prompts: np.ndarray
) -> list[tuple[str, DecoderConfig, memory.DecodeBatch]]:
    """Returns what decodes in a run: name, network, and how much at once.

    `prompts` are the tokens of those of a step; the held-out ones are taken to be as long.
    """
    found: list[tuple[str, DecoderConfig, memory.DecodeBatch]] = []
    slots = config.rollout.slots
    if samples := baselines.most_samples(config):
        tokens = config.rollout.max_new_tokens
        batch = memory.DecodeBatch(prompts, samples, tokens, config.longest, slots)
        found.append(("rollout", generator, batch))
    if longest := config.longest_evaluated:
        asked = np.resize(prompts, config.evaluated_at_once)
        batch = memory.DecodeBatch(asked, 1, config.evaluation_tokens, longest, slots)
        found.append(("evaluation", generator.unrounded, batch))
    return found


class Sizes(NamedTuple):
    """Bytes of a stage's training state: of all devices, of one, and of parts on one device; what
    each device has in the memory of the host, and what an update adds to that."""

    total: int
    device: int
    generator: int
    discriminator: int
    host: int
    host_update: int


def sizes(program: Program, mesh: Mesh) -> Sizes:
    """Returns the sizes of a stage's training state, which holds no base of adapters."""
    generator, discriminator = (
        dataclasses.replace(network, remat="full")
        for network in (program.generator, program.discriminator)
    )
    alike = dataclasses.replace(
        program, generator=generator, discriminator=discriminator, vocabulary_chunk=1
    )
    return _sizes(alike, mesh)


@functools.lru_cache(64)
def _sizes(program: Program, mesh: Mesh) -> Sizes:
    whole = state.abstract(program, mesh)
    leaves = jax.tree.leaves(whole)
    return Sizes(
        sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves),
        devices.device_bytes(whole),
        devices.device_bytes(whole.generator),
        devices.device_bytes(whole.discriminator),
        devices.host_bytes(whole),
        sum(  # the new moments of layers, which a scan collects
            devices.host_bytes(leaf)
            for path, leaf in jax.tree.leaves_with_path(whole)
            if "/layers/" in sharding.path_name(path)
        ),
    )


def base_bytes(config: Config, networks: Networks, mesh: Mesh) -> int:
    """Returns the bytes of the frozen bases on a device."""
    return devices.device_bytes(bases.abstract(config, networks, mesh))


def copy_bytes(network: DecoderConfig, mesh: Mesh, base: Params | None = None) -> int:
    """Returns the bytes of the decode copy: in the compute dtype or rounded, split over tensor
    alone. Adapters are merged into a float one. A network without adapters that ties its head has a
    second copy of the embedding, rounded as kernels are; one with adapters has what it shares with
    its base there, and a rounded head."""
    params = sharding.placed(decoder.abstract(network.decoding), mesh)

    def one(path: Any, leaf: Any) -> int:
        size = prefill.decode_dtype(network, sharding.path_name(path), leaf).itemsize
        split = "tensor" in jax.tree.leaves(tuple(leaf.sharding.spec))
        return math.prod(leaf.shape) * size // (mesh.shape["tensor"] if split else 1)

    found = jax.tree_util.tree_map_with_path(one, params)
    copied = sum(jax.tree.leaves(found))
    head = found["embedding"] if network.tied else 0
    if network.decode_weights == "bfloat16":
        head = head * 2 // jnp.dtype(network.compute_dtype).itemsize
    elif base is not None:
        head = 0
    shared = 0 if base is None else devices.device_bytes(prefill.shared(network, base))
    return copied + head - shared


def _update_bytes(config: Config, program: Program, mesh: Mesh, lengths: Lengths) -> int:
    """Returns the temporary bytes of an update: those of the network that needs more.

    The discriminator's gradients wait for the generator's. With several micro-batches, gradients
    of one are added to a sum in float32. They appear in the backward pass, where the logits of the
    forward pass are gone. Kernels that are rounded once per step are a copy, and so are gradients
    of theirs.
    """
    micro_batches, rows, length = shape(config, lengths, data_shards(mesh))
    rows //= data_shards(mesh)
    waiting = peak = 0
    size = sizes(program, mesh)
    for trains, network, gradients in (
        (program.train_discriminator, program.discriminator, size.discriminator),
        (program.train_generator, program.generator, size.generator),
    ):
        if not trains:
            continue
        once = updates.rounds_once(micro_batches, mesh.size)
        rounded, wide = _rounded_bytes(network, mesh) if once else (0, 0)
        found = gradients - wide + rounded
        summed = gradients if micro_batches > 1 else 0
        saved, working = _activation_bytes(network, rows, length, mesh)
        head = _head_bytes(config, network, rows, length, mesh)
        peak = max(peak, waiting + rounded + summed + saved + max(head, found + working))
        waiting += summed or found
    # Of moments on the host, the update of a network has a part on the device.
    whole = state.abstract(program, mesh)
    arriving = map(_arriving, (whole.generator_optimizer, whole.discriminator_optimizer))
    return max(peak, waiting + max(arriving))


def _arriving(moments: Any) -> int:
    """Returns the bytes of moments on the host that are on a device at once: those of a layer, or
    both of the largest array outside of the layers."""
    layer = outside = 0
    for path, leaf in jax.tree.leaves_with_path(moments):
        if not devices.is_hosted(leaf):
            continue
        size = devices.host_bytes(leaf)
        if "/layers/" in sharding.path_name(path):
            layer += size // leaf.shape[0]
        else:
            outside = max(outside, 2 * size)
    return max(layer, outside)


def _rounded_bytes(network: DecoderConfig, mesh: Mesh) -> tuple[int, int]:
    """Returns the bytes of the kernels that a step rounds, rounded and in float32."""
    size = jnp.dtype(network.compute_dtype).itemsize
    if size == 4 or network.lora is not None:
        return 0, 0
    layers = decoder.abstract(network)["layers"]
    kernels = decoder.selected(layers, lambda path: path.endswith("kernel"))
    wide = devices.device_bytes(sharding.placed({"layers": kernels}, mesh))
    return wide * size // 4, wide


def _activation_bytes(
    network: DecoderConfig, rows: int, length: int, mesh: Mesh
) -> tuple[int, int]:
    """Returns the bytes that a forward pass leaves for the backward pass, and those of the layer
    that the backward pass is in."""
    tensor = mesh.shape["tensor"]
    size = jnp.dtype(network.compute_dtype).itemsize
    positions, width = rows * length, network.width
    mixture = network.experts
    mlp = mixture.width * mixture.per_token if mixture else network.mlp_width
    # queries, keys, values and mixed values; gate and up; the output of attention
    heads = 2 * (network.heads + network.kv_heads) * network.head_width
    matmuls = (heads + 2 * mlp) / tensor + width
    kept = {"full": width, "dots": width + matmuls, "none": 4 * width + 2 * matmuls + mlp / tensor}
    saved = positions * size * network.layers * kept[network.remat]
    if network.matmul == "float8" and network.remat == "none":  # operands of all layers in 8 bits
        inputs = 2 * width + (network.heads * network.head_width + mlp) / tensor
        saved += positions * network.layers * inputs + costs.layer_weights(network) / tensor
    working = 2 * positions * size * matmuls
    if devices.platform() == "cpu":  # the attention weights, which flash kernels never hold
        weights = positions * length * size * network.heads / tensor
        working += weights
        saved += weights * network.layers if network.remat == "none" else 0
    return int(saved + positions * length), int(working)


def _scoring_bytes(config: Config, network: DecoderConfig, mesh: Mesh, lengths: Lengths) -> int:
    """Returns the temporary bytes of a reward model's forward pass over the samples."""
    samples = lengths._replace(responses=lengths.responses[:, 1:])
    _, rows, length = shape(config, samples, data_shards(mesh))
    rows //= data_shards(mesh)
    # Of what a backward pass works with, half: no gradients.
    layer = _activation_bytes(network, rows, length, mesh)[1] // 2
    return layer + 3 * rows * length * network.width * jnp.dtype(network.compute_dtype).itemsize


def _head_bytes(config: Config, network: DecoderConfig, rows: int, length: int, mesh: Mesh) -> int:
    """Returns the bytes of the logits of a chunk and of the kernel that makes them.

    The kernel is there in the compute dtype, and with a float32 gradient where it is trained, or
    turned where it is frozen. A GPU holds a chunk's logits and their gradient, in the compute
    dtype. A CPU holds three arrays in float32, and a trained kernel a second time.
    """
    if network.head != "vocabulary":
        return 0
    chunk = rows * min(max(state.vocabulary_chunk(config) // rows, 1), length)
    size = jnp.dtype(network.compute_dtype).itemsize
    gpu = devices.platform() == "gpu"
    trained = 4 if gpu else 4 + 4
    more = trained if network.lora is None else size
    each = 2 * size if gpu else 3 * 4
    numbers = each * chunk + (more + size) * network.width
    return network.vocabulary * numbers // mesh.shape["tensor"]


def shape(config: Config, lengths: Lengths, shards: int) -> layout.Shape:
    """Returns the shape of the packed pairs of a step of these lengths."""
    batch = config.batch
    sizes = [
        layout.Sizes(int(prompt) - 1, [int(n) + 1 for n in responses])
        for prompt, responses in zip(lengths.prompts, lengths.responses, strict=True)
    ]
    count = len(sizes) // (batch.micro_batch_prompts or len(sizes))
    micro = layout.balance(sizes, count)
    part = layout.Part(sizes, micro)
    ((rows, length, _),) = layout.choose_layouts([part], config.row_tokens, shards, ())
    return count, rows, length

"""How long a step takes on the target: FLOPs, bytes and transfers, over stated rates."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gad_jax.base import host_memory
from gad_jax.distributed import ceilings, hlo
from gad_jax.distributed.chips import CHIPS, Chip
from gad_jax.distributed.targets import Target
from gad_jax.models import costs
from gad_jax.models.config import DecoderConfig
from gad_jax.models.costs import Work
from gad_jax.plan import traffic
from gad_jax.plan.programs import Compiled
from gad_jax.plan.workload import Workload, data_shards
from gad_jax.rollout import ring
from gad_jax.rollout.engine import DecodeCall
from gad_jax.settings import baselines
from gad_jax.settings.config import Config
from gad_jax.training.rewards import models


class Cost(NamedTuple):
    """What one part of a step costs, over all devices.

    `layers` counts those that run one after the other: in decode, layers × iterations of the loop.
    `seconds` were measured (0: they are to be predicted).
    """

    name: str
    flops: float
    bytes: float
    layers: int = 0
    seconds: float = 0.0


class Measured(NamedTuple):
    """Seconds of a stage on this machine: its update, the prefill of a rollout, and a step of the
    decode loop by (slots, capacity)."""

    update: float
    prefill: float
    decode: dict[tuple[int, int], float]

    def decoding(self, calls: Sequence[DecodeCall]) -> float:
        """Returns the seconds of these calls of the decode loop."""
        return sum(self.decode[call.slots, call.capacity] * call.steps for call in calls)


class Phase(NamedTuple):
    """One part of a step: FLOPs and bytes over all devices, and the seconds that follow.

    Compute and memory overlap, so the longer one counts. The latency of layers (kernel launches)
    and the transfers that the phase waits for come on top.
    """

    name: str
    flops: float
    bytes: float
    compute_seconds: float
    memory_seconds: float
    latency_seconds: float
    transfer_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        waiting = self.latency_seconds + self.transfer_seconds
        return max(self.compute_seconds, self.memory_seconds) + waiting


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a stage: its phases, and the seconds of the updates' transfers.

    The seconds of its programs were `measured` for a few layers, or are predicted from rates.
    """

    stage: str
    phases: list[Phase]
    transfer_seconds: float
    measured: bool = False

    @property
    def seconds(self) -> float:
        """Seconds in all. The updates overlap with their transfers, so the longer one counts."""
        updates = sum(p.seconds for p in self.phases if not p.name.startswith("rollout"))
        rollout = sum(p.seconds for p in self.phases if p.name.startswith("rollout"))
        return rollout + max(updates, self.transfer_seconds)


def chip_of(target: Target) -> Chip:
    """Returns the target's device. Simulated devices share this machine, which is measured."""
    if target.kind != "cpu":
        return CHIPS[target.kind]
    rates = ceilings.measure(seconds=0.5)
    memory = host_memory.limit().bytes
    n = target.devices
    return Chip(
        "cpu", rates.flops_per_second / n, memory / n, rates.bytes_per_second / n,
        rates.bytes_per_second / n, rates.bytes_per_second / n, 0.5, 0.0,
        "measured on this machine: a matmul of 2048 × 2048, reading 512 MB",
    )  # fmt: skip


def step(
    config: Config,
    stage: str,
    networks: tuple[DecoderConfig, DecoderConfig],
    target: Target,
    chip: Chip,
    work: Workload,
    programs: list[Compiled],
    rewarding: models.Networks = models.NONE,
    measured: Measured | None = None,
) -> Step:
    """Returns a step of this stage, after its first steps, which train D alone. `rewarding` are the
    run's reward models. Where seconds were `measured`, nothing is assumed for them."""
    generator, _ = networks
    needs: list[Cost] = _snapshot(config, stage, networks, target, work, measured)
    if config.trains_discriminator(stage) or stage == "gad":
        needs += _rollout(config, generator, target, work, work.calls, measured)
    if stage == "gad":
        readers = data_shards(config, target)
        needs += [_scored(f"reward: {n}", each, work, readers) for n, each in rewarding.items()]
    update = _update(config, stage, networks, target, work)
    if measured is not None:
        rate = sum(need.flops for need in update) / measured.update
        update = [need._replace(seconds=need.flops / rate) for need in update]
    needs += update
    sent = {program.name: transfer_seconds(program.collectives, chip) for program in programs}
    updates = [seconds for name, seconds in sent.items() if name.startswith(f"{stage}:")]
    phases = [_timed(need, target.devices, chip, sent.get(need.name, 0.0)) for need in needs]
    phases += _moments(stage, programs, target, chip)
    return Step(stage, phases, updates[-1] if updates else 0.0, measured is not None)


def update_flops(
    config: Config,
    stage: str,
    networks: tuple[DecoderConfig, DecoderConfig],
    target: Target,
    work: Workload,
) -> float:
    """Returns the FLOPs of the stage's update, over all devices."""
    return sum(need.flops for need in _update(config, stage, networks, target, work))


def _update(
    config: Config,
    stage: str,
    networks: tuple[DecoderConfig, DecoderConfig],
    target: Target,
    work: Workload,
) -> list[Cost]:
    """Returns the parts of the stage's update."""
    generator, discriminator = networks
    readers, replicas = data_shards(config, target), config.mesh.replica
    rates = getattr(config, stage)
    trains_discriminator = config.trains_discriminator(stage)

    def training(network: DecoderConfig, done: Work) -> float:
        """The FLOPs of an update; remat=full recomputes the forward pass in the backward pass."""
        again = costs.forward_flops(network, done) if config.student.remat == "full" else 0.0
        return costs.training_flops(network, done) + again

    needs: list[Cost] = []
    if stage != "rejection" and config.uses_discriminator(stage):
        count = training if trains_discriminator else costs.forward_flops
        flops = count(discriminator, costs.processed_work(discriminator, work.pairs))
        moved = traffic.read_bytes(discriminator, work.pairs, readers)
        if trains_discriminator:
            moved = traffic.update_bytes(discriminator, work.pairs, readers, replicas)
        needs.append(Cost("discriminator", flops, moved))
        if trains_discriminator and stage == "gad" and (rows := work.displaced) is not None:
            flops = costs.forward_flops(discriminator, costs.processed_work(discriminator, rows))
            needs.append(Cost("replay", flops, traffic.read_bytes(discriminator, rows, readers)))
    if rates.train_generator:
        rows = {"gad": work.samples, "dpo": work.preferences}.get(stage) or work.teacher
        done = costs.processed_work(generator, rows)
        moved = traffic.update_bytes(generator, rows, readers, replicas)
        # DPO makes the logits twice (`core/preference.py`).
        again = costs.forward_flops(generator, Work(0, 0, done.scored if stage == "dpo" else 0))
        needs.append(Cost("generator", training(generator, done) + again, moved))
        flops = costs.forward_flops(generator, done)
        if stage == "dpo" or (stage == "gad" and config.grpo.kl_coefficient > 0):
            needs.append(Cost("reference", flops, traffic.read_bytes(generator, rows, readers)))
    return needs


def _moments(stage: str, programs: list[Compiled], target: Target, chip: Chip) -> list[Phase]:
    """Returns what moments in the memory of the host cost: they are read to look at the update,
    read to apply it, and written."""
    updates = (program for program in programs if program.name.startswith(f"{stage}:"))
    moved = 3 * max((program.hosted for program in updates), default=0)
    if not moved:
        return []
    return [Phase("moments", 0.0, moved * target.devices, 0.0, 0.0, 0.0, moved / chip.host)]


def _snapshot(
    config: Config,
    stage: str,
    networks: tuple[DecoderConfig, DecoderConfig],
    target: Target,
    work: Workload,
    measured: Measured | None,
) -> list[Cost]:
    """Returns a step's share of the snapshot that a stage samples once, at its start.

    Each prompt is answered once, so of several epochs only the first one pays.
    """
    if not baselines.snapshot_samples(config, stage):
        return []
    generator, discriminator = networks
    options = getattr(config, stage)
    share = 1.0 if options.steps else min(1.0, 1 / options.epochs)
    calls = work.snapshot_calls if stage == "dpo" else work.calls
    needs = _rollout(config, generator, target, work, calls, measured)
    if stage == "rejection":
        needs.append(_scored("rejection: scores", discriminator, work, data_shards(config, target)))
    return [
        Cost(n.name, share * n.flops, share * n.bytes, round(share * n.layers), share * n.seconds)
        for n in needs
    ]


def _scored(name: str, network: DecoderConfig, work: Workload, readers: int) -> Cost:
    """Returns the cost of a pass over the samples."""
    flops = costs.forward_flops(network, costs.processed_work(network, work.samples))
    return Cost(name, flops, traffic.read_bytes(network, work.samples, readers))


def _timed(need: Cost, devices: int, chip: Chip, transfers: float) -> Phase:
    if need.seconds:
        return Phase(need.name, need.flops, need.bytes, need.seconds, 0.0, 0.0, 0.0)
    compute = need.flops / devices / (chip.flops * chip.attainable)
    memory = need.bytes / devices / chip.bandwidth
    latency = need.layers * chip.layer_latency
    return Phase(need.name, need.flops, need.bytes, compute, memory, latency, transfers)


def transfer_seconds(transfers: list[hlo.Collective], chip: Chip) -> float:
    """Returns the seconds of a program's transfers.

    For each, the slower of links and network counts, plus the latency of its start. The share that
    crosses nodes leaves a node through all the devices that the group has there.
    """
    total = 0.0
    for transfer in transfers:
        inside = transfer.bytes / chip.link if transfer.within > 1 else 0.0
        members = transfer.within * transfer.across
        crossing = (transfer.across - 1) / transfer.across * members / max(members - 1, 1)
        outside = transfer.bytes * crossing / transfer.within / chip.network
        total += max(inside, outside) + transfer.times * chip.transfer_latency
    return total


def _rollout(
    config: Config,
    network: DecoderConfig,
    target: Target,
    work: Workload,
    calls: Sequence[DecodeCall],
    measured: Measured | None,
) -> list[Cost]:
    """Returns the costs of a rollout: the decode copy of the weights, prefill and decode.

    Each iteration of the decode loop reads the weights once per tensor shard, of a mixture those
    of the experts that its tokens visit, and the whole KV cache. Idle slots cost as much as busy
    ones.
    """
    size = traffic.itemsize(network)
    asked = work.prompts.astype(np.int64)
    attended = network.layers * int((asked * (asked + 1) // 2).sum())
    prefill = Work(int(asked.sum()), attended, len(asked))
    experts = float(network.experts.count) if network.experts else None

    def weights(experts: float | None) -> float:
        layers = traffic.moved_by_kernels(network.decoding) * costs.layer_weights(network, experts)
        return layers + size * network.width * network.vocabulary

    shards = data_shards(config, target)
    tokens = shards * sum(call.steps * call.slots for call in calls)
    positions = shards * sum(
        call.steps * call.slots * sum(ring.layer_positions(network, call.capacity))
        for call in calls
    )
    cache = 2 * network.kv_heads * network.head_width * size * positions
    flops = costs.forward_flops(network, Work(tokens, positions, tokens))
    passed = weights(experts) * shards  # each data shard has a whole copy
    moved = cache + shards * sum(
        call.steps * weights(costs.touched_experts(network, call.slots)) for call in calls
    )
    layers = network.layers * sum(call.steps for call in calls)
    prefilling, decoding = (measured.prefill, measured.decoding(calls)) if measured else (0.0, 0.0)
    return [
        Cost("rollout: reshard", 0.0, traffic.reshard_bytes(config, network, shards)),
        Cost("rollout: prefill", costs.forward_flops(network, prefill), passed, 0, prefilling),
        Cost("rollout: decode", flops, moved, layers, decoding),
    ]

"""Seconds of a run's programs on this machine, by running them for a few layers.

How much of a CPU's best rate a step reaches depends on the shapes of its matmuls. So a plan for
CPUs times the run's own programs, with the first layers of the networks and weights of zeros. From
two depths follow the seconds of a layer, and of what is outside of the layers.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gad_jax.distributed import ceilings, devices
from gad_jax.distributed.chips import Chip
from gad_jax.distributed.mesh import data_shards
from gad_jax.distributed.targets import Target
from gad_jax.models import adapters, costs
from gad_jax.models.config import DecoderConfig
from gad_jax.models.costs import Work
from gad_jax.plan import calls, estimate
from gad_jax.plan.estimate import Measured
from gad_jax.plan.workload import Workload
from gad_jax.rollout import engine, prefill
from gad_jax.rollout.queue import make_queue
from gad_jax.rollout.sampling import Sampler
from gad_jax.settings import baselines
from gad_jax.settings.config import Config
from gad_jax.training import bases, state
from gad_jax.types import PackedRows

DEPTHS = 1, 4
"""Layers of the slices; a network with fewer is run whole."""

BUDGET = 1.0
"""Seconds for which a program is timed, and about those that one call may take: of a larger step
only some rows and prompts are run."""

LONGEST = 20.0
"""Seconds that a call may take where a single row is that large; beyond, nothing is timed."""

STEPS = 16
"""Steps of the decode loop in a call that is timed."""

Networks = tuple[DecoderConfig, DecoderConfig]


def measure(
    config: Config, networks: Networks, mesh: Mesh, target: Target, chip: Chip, work: Workload
) -> dict[str, Measured]:
    """Returns the seconds of each stage; none for networks of which a slice is too large."""
    rate = chip.flops * target.devices * chip.attainable
    with jax.set_mesh(mesh):
        if _held(config, _cut(networks, DEPTHS[-1]), mesh) > chip.memory / 4:
            return {}
        updates = {}
        for stage in config.stages:
            flops = partial(estimate.update_flops, config, stage, target=target)
            if (found := _update(config, stage, networks, mesh, flops, rate, work)) is None:
                return {}
            updates[stage] = found
        prefilling, decoding = 0.0, {}
        if baselines.most_samples(config):
            prefilling = _prefill(config, networks, mesh, rate, work.prompts)
            used = {(call.slots, call.capacity) for call in (*work.calls, *work.snapshot_calls)}
            decoding = {size: _decode(config, networks, mesh, *size) for size in used}
        return {stage: Measured(each, prefilling, decoding) for stage, each in updates.items()}


def _update(
    config: Config,
    stage: str,
    networks: Networks,
    mesh: Mesh,
    flops: Callable[..., float],
    rate: float,
    work: Workload,
) -> float | None:
    """Returns the seconds of a stage's update; None where a row is too much for a slice."""
    deepest = _cut(networks, DEPTHS[-1])
    part = _part(work, BUDGET * rate / flops(deepest, work=work), data_shards(mesh))
    if flops(deepest, work=part) > LONGEST * rate:
        return None
    batch = dataclasses.replace(config.batch, prompts=len(part.responses), micro_batch_prompts=0)
    smaller = dataclasses.replace(config, batch=batch)

    def seconds(pair: Networks) -> float:
        shapes = calls.given(smaller, stage, pair, mesh, part)
        call = calls.updates(smaller, stage, shapes, mesh, part)[-1]
        program, start, *others = call.arguments
        rows = jax.tree.map(_zeros, others)
        # A step takes over the memory of the state that it gets.
        kept = [jax.tree.map(_zeros, start)]

        def step() -> Any:
            kept[0], metrics = call.function(program, kept[0], *rows)
            return kept[0], metrics

        return float(np.median(ceilings.times(step, BUDGET)))

    share = flops(networks, work=work) / flops(networks, work=part)
    return share * _extrapolated(networks, partial(flops, work=part), seconds)


def _prefill(
    config: Config, networks: Networks, mesh: Mesh, rate: float, prompts: np.ndarray
) -> float:
    """Returns the seconds in which prompts of these lengths are run."""
    shards, tokens = data_shards(mesh), int(prompts.sum())
    deepest, _ = _cut(networks, DEPTHS[-1])
    share = BUDGET * rate / costs.forward_flops(deepest, Work(tokens, 0, 0))
    part = prompts[: max(int(share * len(prompts)), shards)]
    texts = [np.zeros(length, np.int32) for length in part]
    packed = make_queue(texts, np.arange(len(texts)), np.ones(len(texts)), shards)
    rows = devices.put(packed.rows, mesh, "batch")

    def seconds(pair: Networks) -> float:
        params = _generator(config, pair, mesh)

        def run() -> Any:
            return prefill.prefill(pair[0], params, packed.size, *rows)

        return float(np.median(ceilings.times(run, BUDGET / 2)))

    return tokens / int(part.sum()) * _extrapolated(networks, _layers, seconds)


def _decode(config: Config, networks: Networks, mesh: Mesh, slots: int, capacity: int) -> float:
    """Returns the seconds of a step of the decode loop in which every slot is busy."""
    shards, rollout = data_shards(mesh), config.rollout
    sampler = Sampler(rollout.temperature, rollout.top_k, rollout.top_p)
    settings = engine.RolloutProgram(1, STEPS, (), 0, sampler, slots, resizes=False)
    texts = [np.zeros(1, np.int32)] * (slots * shards)
    packed = make_queue(texts, np.arange(len(texts)), np.full(len(texts), STEPS), shards)
    rows, queue = (devices.put(each, mesh, "batch") for each in (packed.rows, packed.queue))

    def seconds(pair: Networks) -> float:
        network, _ = pair
        params = _generator(config, pair, mesh)
        weights = prefill.decode_copy(network, params)
        cache = prefill.prefill(network, params, packed.size, *rows)

        def run() -> Any:
            idle = engine.start(network, settings, slots, capacity, slots)
            key = jax.random.key(0)
            return engine.decode(network, settings, capacity, 0, weights, cache, queue, key, idle)

        return float(np.median(ceilings.times(run, BUDGET / 2)))

    return _extrapolated(networks, _layers, seconds) / STEPS


def _layers(networks: Networks) -> float:
    """Returns the layers of the student."""
    return float(networks[0].layers)


def _extrapolated(
    networks: Networks,
    size: Callable[[Networks], float],
    seconds: Callable[[Networks], float],
) -> float:
    """Returns the seconds at full depth; between depths they grow in proportion to `size`."""
    few, more = (_cut(networks, depth) for depth in DEPTHS)
    first = seconds(few)
    if few == networks:
        return first
    growth = max(seconds(more) - first, 0.0)  # of tiny layers, less than the noise
    return first + growth * (size(networks) - size(few)) / (size(more) - size(few))


def _cut(networks: Networks, layers: int) -> Networks:
    """Returns the networks with their first layers alone."""

    def one(network: DecoderConfig) -> DecoderConfig:
        count = min(layers, network.layers)
        return dataclasses.replace(network, layers=count, pattern=network.pattern[:count])

    generator, discriminator = networks
    return one(generator), one(discriminator)


def _part(work: Workload, share: float, shards: int) -> Workload:
    """Returns about this share of the rows of one micro-batch, at least one of each data shard."""

    def one(rows: PackedRows | None) -> PackedRows | None:
        if rows is None:
            return None
        micro, count, _ = rows.tokens.shape
        kept = min(max(round(share * micro * count / shards), 1) * shards, count)
        cut = jax.tree.map(lambda x: x[:1, :kept], rows._replace(ends=None, groups=None))
        return cut._replace(ends=rows.ends[:1], groups=rows.groups[:1])

    names = ("pairs", "samples", "teacher", "displaced", "preferences")
    prompts = work.pairs.groups.shape[1]
    cut = {name: one(getattr(work, name)) for name in names}
    return work._replace(responses=work.responses[:prompts], **cut)


def _generator(config: Config, networks: Networks, mesh: Mesh) -> Any:
    """Returns the student's weights, all zeros."""
    stage = config.stages[-1]
    start = state.abstract(state.make_program(config, stage, *networks), mesh)
    frozen = bases.abstract(config, networks, mesh)
    return jax.tree.map(_zeros, adapters.join(frozen.generator, start.generator))


def _held(config: Config, networks: Networks, mesh: Mesh) -> int:
    """Returns the bytes that a device holds of the training state and the frozen bases."""
    frozen = devices.device_bytes(bases.abstract(config, networks, mesh))
    return frozen + max(
        devices.device_bytes(state.abstract(state.make_program(config, stage, *networks), mesh))
        for stage in config.stages
    )


def _zeros(leaf: Any) -> Any:
    """Returns an array of this shape on its devices."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.random.key(0), leaf.sharding)
    if devices.is_hosted(leaf):  # `jnp.zeros` makes none there
        return devices.zeros(leaf)
    return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)

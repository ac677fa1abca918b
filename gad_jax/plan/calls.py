"""The programs of a run as calls: compiled functions with the shapes of what they are given."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from gad_jax.core import packing, preference, steps
from gad_jax.core.program import Program
from gad_jax.distributed import devices, sharding
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import adapters
from gad_jax.models.config import DecoderConfig
from gad_jax.plan.workload import Workload, lengths_of
from gad_jax.rollout import engine, memory, prefill, ring
from gad_jax.rollout.queue import cache_capacity, fewer_slots
from gad_jax.rollout.ring import DecodeCopy
from gad_jax.rollout.sampling import GREEDY, Sampler
from gad_jax.settings.config import Config
from gad_jax.training import bases, footprint, state
from gad_jax.training.rewards import models
from gad_jax.types import Frozen, PackedRows, Replay, TrainState

ESTIMATED = 0.8
"""A program that by arithmetic takes this share of the most may take the most."""


class Call(NamedTuple):
    """A jitted function with abstract arguments.

    `held` are the trees on the device by kind, or their bytes, `resident` further bytes, and
    `iterations` those of its outermost loop of unknown length, each of so many `steps`. `read` are
    trees that each step must read once.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    held: dict[str, Any]
    resident: int = 0
    iterations: int = 1
    steps: int = 1
    read: Any = ()


class Given(NamedTuple):
    """What the programs of a stage are compiled for, and the shapes of what they are given."""

    program: Program
    start: TrainState
    frozen: Frozen
    rows: dict[str, Any]


def given(
    config: Config,
    stage: str,
    networks: tuple[DecoderConfig, DecoderConfig],
    mesh: Mesh,
    work: Workload,
) -> Given:
    """Returns what the programs of a stage are given."""
    program = state.make_program(config, stage, *networks)
    frozen = bases.abstract(config, networks, mesh)
    return Given(program, state.abstract(program, mesh), frozen, _rows(config, mesh, work))


def of_run(
    config: Config,
    networks: tuple[DecoderConfig, DecoderConfig],
    mesh: Mesh,
    work: Workload,
    rewarding: models.Networks,
) -> Iterator[Call]:
    """Yields the calls of the run's stages, which has the reward models `rewarding`."""
    paying = {"reward model": footprint.rewarding_bytes(rewarding, mesh)}
    for stage in config.stages:
        shapes = given(config, stage, networks, mesh, work)
        program, start, frozen, rows = shapes
        calls = updates(config, stage, shapes, mesh, work)
        if stage == "gad":
            calls += _rewards(rewarding, start, rows["samples"], frozen, mesh)
        if stage == "rejection":
            calls.append(_scoring(program, start, rows["samples"], frozen))
        # Once, with the last stage's state, which is the largest.
        if stage == config.stages[-1]:
            close = _may_be_largest(config, networks, mesh, work, rewarding)
            decoders = footprint.decoders(config, program.generator, work.prompts)
            for name, network, batch in decoders:
                if name == "rollout" or close:
                    calls += _decoding(config, name, network, batch, shapes, mesh, work.iterations)
        for call in calls:
            yield call._replace(held=paying | call.held)


def updates(config: Config, stage: str, shapes: Given, mesh: Mesh, work: Workload) -> list[Call]:
    """Returns the updates of a stage; the last one is that of most of its steps."""
    program, start, frozen, rows = shapes
    return [
        Call(
            f"{stage}: {name}",
            function,
            (program, start, *(rows[key] for key in inputs), frozen, *older),
            {"state": start, "rows": [rows[key] for key in inputs], "base": frozen},
        )
        for name, function, inputs in _updates(config, stage)
        for older in [_replay(function, mesh, work)]
    ]


def _rows(config: Config, mesh: Mesh, work: Workload) -> dict[str, Any]:
    """Returns the shapes of the rows that steps take, by name."""
    rows: dict[str, Any] = {
        name: packing.abstract(getattr(work, name), mesh)
        for name in ("pairs", "samples", "teacher", "alone", "preferences")
        if getattr(work, name) is not None
    }
    return rows | {"extra": _extra(config, mesh)}


def _updates(config: Config, stage: str) -> list[tuple[str, Any, list[str]]]:
    """Returns the updates of a stage: name, compiled function, the rows that it takes."""
    rates = getattr(config, stage)
    only_discriminator = ("D update", steps.discriminator_step, ["pairs"])
    if stage == "dpo":
        return [("G update", preference.dpo_step, ["preferences"])]
    if stage in ("seqkd", "rejection"):
        return [("G update", steps.seqkd_step, ["alone"])]
    if not rates.train_generator:
        return [only_discriminator]
    first = rates.discriminator_only_steps and config.trains_discriminator(stage)
    if stage == "gad" and not config.uses_discriminator(stage):
        both = ("G update", steps.reward_step, ["samples", "extra"])
    elif stage == "gad":
        both = ("G and D update", steps.gad_step, ["pairs", "samples"])
    elif not rates.train_discriminator:
        both = ("G update", steps.seqkd_step, ["alone"])
    else:
        both = ("G and D update", steps.warmup_step, ["pairs", "teacher"])
    return [only_discriminator, both] if first else [both]


def _replay(function: Any, mesh: Mesh, work: Workload) -> list[Replay]:
    """Returns what a step of a run that replays older answers takes besides."""
    if work.displaced is None or function is steps.seqkd_step:
        return []
    where = NamedSharding(mesh, sharding.mesh_spec(None, None))
    old = jax.ShapeDtypeStruct(work.responses.shape, jnp.bool_, sharding=where)
    paid = packing.abstract(work.displaced, mesh) if function is steps.gad_step else None
    return [Replay(old, paid)]  # pyright: ignore[reportArgumentType]


def _scoring(program: Program, start: TrainState, samples: PackedRows, frozen: Frozen) -> Call:
    """Returns the call in which D scores the samples that it chooses among."""
    samples = samples._replace(thresholds=None)
    held = {"rows": samples, "state": start, "base": frozen}
    arguments = (program, start.discriminator, samples, frozen)
    return Call("rejection: scores", preference.score_responses, arguments, held)


def _rewards(
    rewarding: models.Networks, start: TrainState, samples: PackedRows, frozen: Frozen, mesh: Mesh
) -> list[Call]:
    """Returns the calls in which reward models score the samples."""
    samples = samples._replace(thresholds=None)
    held = {"rows": samples, "state": start, "base": frozen}
    return [
        Call(f"reward: {name}", models.scores, (network, weights, samples), held)
        for name, network in rewarding.items()
        for weights in [models.abstract(network, mesh)]
    ]


def _extra(config: Config, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Returns the shape of the values of the reward's extra terms."""
    shape = (len(config.reward.terms), config.batch.prompts, config.rollout.samples)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(shape, "float32", sharding=everywhere)


def _may_be_largest(
    config: Config,
    networks: tuple[DecoderConfig, DecoderConfig],
    mesh: Mesh,
    work: Workload,
    rewarding: models.Networks,
) -> bool:
    """Returns whether an evaluation may take the most memory of the run, by arithmetic. Otherwise
    it is not worth its compile. Rollouts come from the same arithmetic, so both compare exactly."""
    most = dict.fromkeys(("evaluation", "rollout", "others"), 0)
    for need in footprint.needs(config, networks, mesh, lengths_of(work), rewarding):
        kind = need.kind if need.kind in most else "others"
        most[kind] = max(most[kind], need.total)
    return most["evaluation"] > max(most["rollout"], ESTIMATED * most["others"])


def _decoding(
    config: Config,
    name: str,
    network: DecoderConfig,
    batch: memory.DecodeBatch,
    shapes: Given,
    mesh: Mesh,
    iterations: int,
) -> list[Call]:
    """Returns the calls of a rollout or an evaluation: the decode copy of the weights, prefill, the
    decode loop. That of a rollout runs so many `iterations`, that of an evaluation at most those of
    answers that are all as long as they may be."""
    _, start, frozen, _ = shapes
    settings = _program(config, batch, greedy=name == "evaluation")
    packed, rows, queue = _abstract_queue(batch, mesh)
    generator = adapters.join(frozen.generator, start.generator)
    resident = devices.device_bytes((start._replace(generator=None), frozen.discriminator))

    def shapes_of(function: Callable[..., Any], *arguments: Any) -> Any:
        return sharding.with_shardings(jax.eval_shape(function, *arguments), mesh)

    weights = shapes_of(lambda p: prefill.decode_copy(network, p), generator)
    prompts = shapes_of(
        lambda p, *r: prefill.prefill(network, p, packed.size, *r), generator, *rows
    )
    samples = packed.prompts_per_shard * settings.samples
    slots = min(settings.slots or memory.default_slots(), samples)
    needed = packed.longest + settings.max_new_tokens if settings.resizes else settings.longest
    capacity = cache_capacity(needed, settings.longest)
    cache = shapes_of(lambda: engine.start(network, settings, slots, capacity, samples))
    if name == "evaluation":
        iterations = settings.max_new_tokens * -(-samples // slots)
    fewer = fewer_slots(slots) if settings.resizes else 0
    sampling = (network, settings, capacity, fewer, weights, prompts, queue, start.key, cache)
    held: dict[str, Any] = {"generator": generator}
    shared = devices.device_bytes(prefill.shared(network, generator))
    copied = held | {"decode copy": devices.device_bytes(weights) - shared}
    # The loop is compiled for the prompts that were drawn, and the cache may become larger.
    now, most = (memory.cache_bytes(network, slots, n) for n in (capacity, settings.longest))
    kept = devices.device_bytes(cache) + (most - now) // mesh.shape["tensor"]
    sampled = copied | {"prompt KV cache": prompts, "KV cache": kept}
    tokens = (network, generator, packed.size, *rows)
    loop = {"iterations": iterations // settings.steps, "steps": settings.steps}
    read = (ring.read_by_step(weights), cache.ring)
    return [
        _reshard(name, network, generator, weights, copied, resident),
        Call(f"{name}: prefill", prefill.prefill, tokens, copied, resident),
        Call(f"{name}: decode", engine.decode, sampling, sampled, resident, **loop, read=read),
    ]


def _program(config: Config, batch: memory.DecodeBatch, *, greedy: bool) -> engine.RolloutProgram:
    rollout = config.rollout
    sampler = Sampler(rollout.temperature, rollout.top_k, rollout.top_p)
    return engine.RolloutProgram(
        samples=batch.samples,
        max_new_tokens=batch.max_new_tokens,
        end_tokens=(0,),
        pad_token=0,
        sampler=GREEDY if greedy else sampler,
        slots=batch.slots,
        longest=batch.longest,
        resizes=rollout.resize,
    )


def _reshard(
    name: str,
    network: DecoderConfig,
    generator: Any,
    weights: DecodeCopy,
    copied: dict[str, Any],
    resident: int,
) -> Call:
    """Returns the program that makes the decode copy, of merged adapters that of the last layer."""
    name = f"{name}: reshard"
    made = copied | {"decode copy": 0}
    if network.lora is None:
        return Call(name, prefill.whole_copy, (network, generator), made, resident)
    if network.quantisation != "none":
        _, floats = prefill.kernels_apart(generator["layers"])
        return Call(name, prefill.by_layer, (network, floats), made, resident)
    made["decode copy"] = copied["decode copy"] - devices.device_bytes(weights.layers[-1])
    number = jax.ShapeDtypeStruct((), jnp.int32)
    layers = generator["layers"]
    return Call(name, prefill.merged_layer, (network, layers, number), made, resident)


def _abstract_queue(batch: memory.DecodeBatch, mesh: Mesh) -> tuple[Any, Any, Any]:
    """Returns the packed prompts, and the shapes of their rows and queue on the mesh."""
    packed = batch.packed(data_shards(mesh))

    def split(x: Any) -> Any:
        where = NamedSharding(mesh, sharding.mesh_spec("batch", *(None,) * (x.ndim - 1)))
        return jax.ShapeDtypeStruct(x.shape, jnp.int32, sharding=where)

    rows, queue = jax.tree.map(split, (packed.rows, packed.queue))
    return packed, rows, queue

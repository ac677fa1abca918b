"""The programs of a run, compiled for devices that need not be here, and what XLA says of them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gad_jax.core import packing, steps
from gad_jax.core.program import Program
from gad_jax.distributed import devices, hlo, sharding
from gad_jax.distributed.mesh import data_shards
from gad_jax.distributed.targets import Target
from gad_jax.plan.workload import Workload
from gad_jax.rollout import engine, memory, prefill
from gad_jax.rollout.queue import capacity, fewer_slots, make_queue
from gad_jax.rollout.sampling import Sampler
from gad_jax.settings.config import Config
from gad_jax.training import state
from gad_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program: bytes per device while it runs, by kind, and what it sends.

    `bytes` has the arguments by name, `resident` (what lies on the device meanwhile and is no
    argument), `temporary` and `results` (those that take no argument's place). `refused` is the
    compiler's sentence where it found no room.
    """

    name: str
    bytes: dict[str, int]
    collectives: list[hlo.Collective]
    compile_seconds: float
    refused: str = ""

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


def compile_all(
    config: Config,
    networks: tuple[Any, Any],
    mesh: Mesh,
    target: Target,
    work: Workload,
    report: Callable[[str], None],
) -> list[Compiled]:
    """Returns every program of the run's stages; `report` is told what is being compiled."""
    done: list[Compiled] = []
    samples = False
    rows = {
        name: packing.abstract(getattr(work, name), mesh)
        for name in ("pairs", "samples", "teacher")
    }
    with jax.set_mesh(mesh), devices.compiling_for(target.backend):
        for stage in config.stages:
            program = state.make_program(config, stage, *networks)
            start = state.abstract(program, mesh)
            for name, function, inputs in _updates(config, stage):
                report(f"{stage}: {name}")
                arguments = {"state": start, "rows": [rows[key] for key in inputs]}
                call = (program, start, *(rows[key] for key in inputs))
                done.append(_compile(f"{stage}: {name}", function, call, arguments, {}, target))
            samples |= stage == "gad" or getattr(config, stage).train_discriminator
            if samples and stage == config.stages[-1]:  # the last stage holds the most beside it
                done += _rollout(config, program, start, mesh, target, work, report)
    return done


def _updates(config: Config, stage: str) -> list[tuple[str, Any, list[str]]]:
    """Returns the updates of a stage: name, compiled function, the rows that it takes."""
    rates = getattr(config, stage)
    only_discriminator = ("D update", steps.discriminator_step, ["pairs"])
    if stage == "seqkd":
        return [("G update", steps.seqkd_step, ["teacher"])]
    if not rates.train_generator:
        return [only_discriminator]
    first = rates.discriminator_only_steps and rates.train_discriminator
    if stage == "gad":
        both = ("G and D update", steps.gad_step, ["pairs", "samples"])
    elif not rates.train_discriminator:
        both = ("G update", steps.seqkd_step, ["teacher"])
    else:
        both = ("G and D update", steps.warmup_step, ["pairs", "teacher"])
    return [only_discriminator, both] if first else [both]


def _rollout(
    config: Config,
    program: Program,
    start: TrainState,
    mesh: Mesh,
    target: Target,
    work: Workload,
    report: Callable[[str], None],
) -> list[Compiled]:
    """Compiles the rollout: the decode copy of the weights, prefill and the decode loop."""
    network = program.generator
    shards = data_shards(mesh)
    settings = engine.RolloutProgram(
        samples=config.rollout.samples,
        max_new_tokens=config.rollout.max_new_tokens,
        end_tokens=(0,),
        pad_token=0,
        sampler=Sampler(config.rollout.temperature, config.rollout.top_k, config.rollout.top_p),
        slots=config.rollout.slots,
        longest=config.longest,
    )
    asked = [np.zeros(length, np.int32) for length in work.prompts]
    limits = np.full(len(asked), settings.max_new_tokens)
    packed = make_queue(asked, np.arange(len(asked)), limits, shards)

    def split(x: Any) -> Any:
        where = NamedSharding(mesh, sharding.mesh_spec("batch", *(None,) * (x.ndim - 1)))
        return jax.ShapeDtypeStruct(x.shape, jnp.int32, sharding=where)

    def shapes(function: Callable[..., Any], *arguments: Any) -> Any:
        return sharding.with_shardings(jax.eval_shape(function, *arguments), mesh)

    rows, queue = jax.tree.map(split, (packed.rows, packed.queue))
    weights = shapes(lambda p: prefill.prepare(network, p), start.generator)
    prefix = shapes(
        lambda p, *r: prefill.prefill(network, p, packed.size, *r), start.generator, *rows
    )
    samples = packed.prompts_per_shard * settings.samples
    slots = min(settings.slots or memory.default_slots(), samples)
    columns = capacity(packed.longest + settings.max_new_tokens, settings.longest)
    cache = shapes(lambda: engine.start(network, settings, slots, columns, samples))
    sampling = (network, settings, fewer_slots(slots), weights, prefix, queue, start.key, cache)
    outside = {"resident": devices.device_bytes(start._replace(generator=None))}
    programs = [
        ("reshard", prefill.prepare, (network, start.generator), {"generator": start.generator}),
        (
            "prefill",
            prefill.prefill,
            (network, start.generator, packed.size, *rows),
            {"generator": start.generator, "decode weights": weights},
        ),
        (
            "decode",
            engine.decode,
            sampling,
            {
                "decode weights": weights,
                "prompt cache": prefix,
                "cache": cache,
                "generator": start.generator,
            },
        ),
    ]
    done = []
    for name, function, call, arguments in programs:
        report(f"rollout: {name}")
        turns = work.turns if function is engine.decode else 1
        done.append(_compile(f"rollout: {name}", function, call, arguments, outside, target, turns))
    return done


def _compile(
    name: str, function: Any, call: tuple[Any, ...], held: dict[str, Any], more: dict[str, int],
    target: Target, turns: int = 1,
) -> Compiled:  # fmt: skip
    kinds: dict[str, int] = {}
    for key, tree in held.items():
        if isinstance(tree, TrainState):
            kinds |= _state_bytes(tree)
        else:
            kinds[key] = devices.device_bytes(tree)
    kinds |= more
    started = time.perf_counter()
    try:
        lowered = function.trace(*call).lower(lowering_platforms=(target.platform,))
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "hbm" not in str(error).lower():
            raise
        reason = str(error).splitlines()[0]
        return Compiled(name, kinds, [], time.perf_counter() - started, reason)
    seconds = time.perf_counter() - started
    analysis = compiled.memory_analysis()
    kinds["temporary"] = analysis.temp_size_in_bytes
    kinds["results"] = max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0)
    transfers = hlo.collectives(compiled.as_text(), target.per_node, turns)
    return Compiled(name, kinds, transfers, seconds)


def _state_bytes(start: TrainState) -> dict[str, int]:
    moments = (start.generator_optimizer, start.discriminator_optimizer)
    parts = {
        "generator": start.generator,
        "discriminator": start.discriminator,
        "reference": start.reference,
        "moments": moments,
    }
    return {name: size for name, tree in parts.items() if (size := devices.device_bytes(tree))}

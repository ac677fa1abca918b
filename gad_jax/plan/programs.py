"""The programs of a run, compiled for devices that need not be present, and XLA's analysis."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gad_jax.base.errors import first_line
from gad_jax.distributed import devices, hlo, kernels
from gad_jax.distributed.kernels import Launches
from gad_jax.distributed.targets import Target
from gad_jax.models.config import DecoderConfig
from gad_jax.plan import calls
from gad_jax.plan.calls import Call
from gad_jax.plan.workload import Workload
from gad_jax.settings.config import Config
from gad_jax.training.rewards import models
from gad_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program: bytes per device while it runs, by kind, and what it sends.

    `bytes` has the arguments by name; `resident`, which stays on the device and is no argument;
    `temporary`; and `results`, without those that reuse the memory of an argument. `refused` is the
    compiler's sentence if the program did not fit. `launches` are counted where asked for. `needed`
    are the bytes that a step of its loop must read: of decode, weights and KV cache once. In the
    memory of the host a device has `hosted` of its arguments, and `host` in all.
    """

    name: str
    bytes: dict[str, int]
    collectives: list[hlo.Collective]
    compile_seconds: float
    refused: str = ""
    launches: Launches | None = None
    needed: int = 0
    hosted: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes per device, of all kinds."""
        return sum(self.bytes.values())


def compile_all(
    config: Config,
    networks: tuple[DecoderConfig, DecoderConfig],
    mesh: Mesh,
    target: Target,
    work: Workload,
    report: Callable[[str], None],
    *,
    count_kernels: bool = False,
    rewarding: models.Networks = models.NONE,
) -> list[Compiled]:
    """Returns every program of the run's stages, which has the reward models `rewarding`; `report`
    is told what is being compiled.

    With `count_kernels`, which only XLA's compiler for GPUs can, also what each starts.
    """
    done: list[Compiled] = []
    with jax.set_mesh(mesh), devices.compiling_for(target.backend):
        for call in calls.of_run(config, networks, mesh, work, rewarding):
            report(call.name)
            done.append(_compile(call, target, count_kernels=count_kernels))
    return done


def _compile(call: Call, target: Target, *, count_kernels: bool) -> Compiled:
    kinds: dict[str, int] = {}
    for kind, tree in call.held.items():
        if isinstance(tree, TrainState):
            kinds |= _state_bytes(tree)
        elif size := tree if isinstance(tree, int) else devices.device_bytes(tree):
            kinds[kind] = size
    if call.resident:
        kinds["resident"] = call.resident
    started = time.perf_counter()
    lowered = call.function.trace(*call.arguments).lower(lowering_platforms=(target.platform,))
    try:
        compiled, launches = _compiled(lowered, call.steps if count_kernels else 0)
    except jax.errors.JaxRuntimeError as error:
        # The TPU's compiler refuses a program that does not fit; others compile it.
        if "RESOURCE_EXHAUSTED" not in str(error) and "hbm" not in str(error).lower():
            raise
        return Compiled(call.name, kinds, [], time.perf_counter() - started, first_line(error))
    seconds = time.perf_counter() - started
    analysis = compiled.memory_analysis()
    kinds["temporary"] = analysis.temp_size_in_bytes
    kinds["results"] = max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0)
    transfers = hlo.collectives(compiled.as_text(), target.per_node, call.iterations)
    hosted, needed = devices.host_bytes(call.held), devices.device_bytes(call.read)
    host = hosted and hosted + analysis.host_temp_size_in_bytes
    kinds |= {"moments": host} if host and target.kind == "cpu" else {}  # one memory
    return Compiled(call.name, kinds, transfers, seconds, "", launches, needed, hosted, host)


def _compiled(lowered: Any, steps: int) -> tuple[Any, Launches | None]:
    """Returns the compiled program and what it starts, which XLA writes into files.

    An iteration of its loop has so many `steps`; with 0 nothing is counted.
    """
    if not steps:
        return lowered.compile(), None
    # A program from the cache on disk is not compiled, so nothing would be written.
    jax.config.update("jax_enable_compilation_cache", False)
    with tempfile.TemporaryDirectory() as place:
        compiled = lowered.compile(compiler_options={"xla_dump_to": place})
        thunks, metadata = kernels.dumped(Path(place))
        return compiled, kernels.launches(thunks, metadata, compiled.as_text(), steps)


def _state_bytes(start: TrainState) -> dict[str, int]:
    parts = {name: getattr(start, name) for name in ("generator", "discriminator", "reference")}
    parts["moments"] = (start.generator_optimizer, start.discriminator_optimizer)
    return {name: size for name, tree in parts.items() if (size := devices.device_bytes(tree))}

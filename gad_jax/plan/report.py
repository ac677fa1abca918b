"""The plan, and how it is shown: as tables with advice, and as JSON."""

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from gad_jax.distributed import hlo
from gad_jax.distributed.targets import Chip, Target
from gad_jax.plan.estimate import Step
from gad_jax.plan.programs import Compiled
from gad_jax.plan.workload import Workload

USABLE = 0.92
"""Share of a device's memory for the run; the rest is for driver, compiler and fragmentation."""
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """The result of the command: a run's programs and steps on a target."""

    target: Target
    chip: Chip
    mesh: dict[str, int]
    programs: list[Compiled]
    steps: list[Step]
    work: Workload

    @property
    def peak(self) -> Compiled:
        """The program that needs the most memory; one that the compiler refused comes first."""
        return max(self.programs, key=lambda program: (bool(program.refused), program.total))

    @property
    def fits(self) -> bool:
        """Whether every program compiles and stays within the usable memory."""
        limit = USABLE * self.chip.memory
        return not any(p.refused for p in self.programs) and self.peak.total <= limit

    def advice(self) -> list[str]:
        """Returns what to change, for the largest part of the largest program first."""
        return [] if self.fits else _advice(self.peak, self.mesh)


def _advice(program: Compiled, mesh: dict[str, int]) -> list[str]:
    sizes = sorted(program.bytes.items(), key=lambda item: -item[1])
    states = ("generator", "discriminator", "reference", "moments", "resident")
    state = "the weights over more devices: a larger --mesh.fsdp, or a target with more of them"
    if mesh["replica"] > 1:
        state = "the weights over more devices: a smaller --mesh.replica, a larger --mesh.fsdp"
    changes = {
        "temporary": "what is computed at once: a smaller --batch.micro_batch_prompts, then "
        "--batch.vocabulary_chunk and --student.remat=full",
        "prompt KV cache": "the prompt KV cache: fewer --batch.prompts or a larger --mesh.tensor",
        "decode copy": "the decode copy of the weights: a larger --mesh.tensor",
        "KV cache": "the KV cache: fewer --rollout.slots, or shorter --rollout.max_new_tokens",
    } | dict.fromkeys(states, state)
    if "rollout" in program.name:
        changes["temporary"] = (
            "the rollout's KV caches: fewer --rollout.slots or shorter "
            "--rollout.max_new_tokens, or a larger --mesh.tensor"
        )
    large = [name for name, size in sizes if size > 0.1 * program.total]
    if program.refused and "rollout" not in program.name:
        large.append("temporary")  # its size is unknown: a refused program has no analysis
    said = [changes[name] for name in large if name in changes]
    return [f"split or reduce {change}" for change in dict.fromkeys(said)]


def show(plan: Plan, console: Console) -> None:
    """Prints the plan."""
    chip, target = plan.chip, plan.target
    axes = " × ".join(f"{name} {size}" for name, size in plan.mesh.items())
    console.print(
        f"{target.name}: {target.devices} devices, {chip.memory / GIB:.1f} GiB and "
        f"{chip.flops / 1e12:.3g} TFLOP/s each ({chip.source}); mesh {axes}"
    )
    work = plan.work
    console.print(
        f"lengths: prompts {work.prompts.mean():.0f} tokens on average, responses "
        f"{work.responses.mean():.0f}; padding of packed rows {work.padding:.1%}, of a padded "
        f"rectangle {work.rectangle_padding:.1%}"
    )
    console.print(_memory_table(plan))
    console.print(_transfer_table(plan))
    for step in plan.steps:
        console.print(_time_table(step, plan))
    limit = USABLE * chip.memory / GIB
    if plan.fits:
        console.print(
            f"It fits: at most {plan.peak.total / GIB:.2f} of {limit:.1f} usable GiB per device "
            f"({plan.peak.name})."
        )
        return
    peak = plan.peak
    if peak.refused:
        console.print(f"It does not fit: the compiler refused {peak.name} ({peak.refused})")
    else:
        needed = f"{peak.total / GIB:.2f} GiB per device; {limit:.1f} GiB are usable"
        console.print(f"It does not fit: {peak.name} needs {needed}.")
    for line in plan.advice():
        console.print(f"- {line}")


def _memory_table(plan: Plan) -> Table:
    table = _table("GiB per device")
    kinds = list(dict.fromkeys(kind for program in plan.programs for kind in program.bytes))
    table.add_column("program", no_wrap=True)
    for kind in (*kinds, "total", "compiled in"):
        table.add_column(kind, justify="right", overflow="fold")
    for program in plan.programs:
        cells = [_gib(program.bytes.get(kind, 0)) for kind in kinds]
        total = "refused" if program.refused else _gib(program.total)
        table.add_row(program.name, *cells, total, f"{program.compile_seconds:.0f} s")
    return table


def _transfer_table(plan: Plan) -> Table:
    table = _table("transfers per step: GiB that each device sends")
    for name in ("program", "kind", "devices × nodes", "times", "GiB"):
        table.add_column(name, justify="left" if name in ("program", "kind") else "right")
    for program in plan.programs:
        for transfer in program.collectives:
            group = f"{transfer.within} × {transfer.across}"
            count = str(transfer.times)
            table.add_row(program.name, transfer.kind, group, count, _gib(transfer.bytes))
    return table


def _time_table(step: Step, plan: Plan) -> Table:
    attained = plan.chip.attainable
    table = _table(
        f"{step.stage}: predicted {step.seconds:.3g} s per step, assuming {attained:.0%} of peak; "
        f"updates overlap {step.transfer_seconds:.3g} s of transfers"
    )
    for name in ("phase", "TFLOP", "GB moved", "compute s", "memory s", "latency s", "transfers s"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for phase in step.phases:
        table.add_row(
            phase.name,
            f"{phase.flops / 1e12:,.4g}",
            f"{phase.bytes / 1e9:,.4g}",
            f"{phase.compute_seconds:.3g}",
            f"{phase.memory_seconds:.3g}",
            *(f"{n:.3g}" if n else "–" for n in (phase.latency_seconds, phase.transfer_seconds)),
        )
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size >= 0.005 * GIB else f"{size / GIB:.1g}" if size else "–"


def to_json(plan: Plan) -> dict[str, Any]:
    """Returns the plan for json.dumps; bytes are per device, FLOPs of all devices."""

    def transfer(found: hlo.Collective) -> dict[str, Any]:
        return dict(found._asdict())

    return {
        "target": plan.target.name,
        "devices": plan.target.devices,
        "chip": dataclasses.asdict(plan.chip),
        "mesh": plan.mesh,
        "usable_bytes": int(USABLE * plan.chip.memory),
        "fits": plan.fits,
        "advice": plan.advice(),
        "padding": {"packed": plan.work.padding, "rectangle": plan.work.rectangle_padding},
        "programs": [
            {
                "name": program.name,
                "bytes": program.bytes,
                "total_bytes": program.total,
                "refused": program.refused,
                "compile_seconds": program.compile_seconds,
                "collectives": [transfer(found) for found in program.collectives],
            }
            for program in plan.programs
        ],
        "steps": [
            {
                "stage": step.stage,
                "seconds": step.seconds,
                "transfer_seconds": step.transfer_seconds,
                "phases": [phase._asdict() | {"seconds": phase.seconds} for phase in step.phases],
            }
            for step in plan.steps
        ],
    }

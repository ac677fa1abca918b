"""The plan with its advice, and as JSON; its tables are in `tables.py`."""

import dataclasses
from typing import Any

from gad_jax.distributed import hlo
from gad_jax.distributed.chips import Chip
from gad_jax.distributed.targets import Target
from gad_jax.plan.duration import Duration
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
    duration: Duration | None = None
    price_per_hour: float = 0.0
    instead: str = ""
    """Flags that would make it fit, by estimate."""
    layers: int = 1
    """Of the student."""

    @property
    def cost(self) -> float | None:
        """What the run costs; None where its length or the price of a device is not known."""
        if self.duration is None or not self.price_per_hour:
            return None
        return self.duration.hours * self.price_per_hour * self.target.devices

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
        if self.fits:
            return []
        set_these = [f"by estimate it would fit with {self.instead}"] if self.instead else []
        return [*set_these, *_advice(self.peak, self.mesh)]


def _advice(program: Compiled, mesh: dict[str, int]) -> list[str]:
    sizes = sorted(program.bytes.items(), key=lambda item: -item[1])
    states = ("generator", "discriminator", "reference", "moments", "resident", "reward model")
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
    kind = program.name.partition(": ")[0]
    if kind == "evaluation":
        fewer, shorter = "--evaluation.batch_prompts", "--evaluation.max_new_tokens"
        changes |= {
            "prompt KV cache": f"the prompt KV cache: fewer {fewer} or a larger --mesh.tensor",
            "KV cache": f"the KV cache: fewer --rollout.slots or {fewer}, or shorter {shorter}",
            "temporary": f"the evaluation's KV caches: fewer {fewer} or --rollout.slots, or "
            f"shorter {shorter}, or a larger --mesh.tensor",
        }
    elif kind == "rollout":
        changes["temporary"] = (
            "the rollout's KV caches: fewer --rollout.slots or shorter "
            "--rollout.max_new_tokens, or a larger --mesh.tensor"
        )
    large = [name for name, size in sizes if size > 0.1 * program.total]
    if program.refused and kind not in ("rollout", "evaluation"):
        large.append("temporary")  # its size is unknown: a refused program has no analysis
    said = [changes[name] for name in large if name in changes]
    return [f"split or reduce {change}" for change in dict.fromkeys(said)]


def _launches(program: Compiled, layers: int) -> dict[str, Any] | None:
    """Returns what a program starts in one call, or in one iteration of its loop."""
    found = program.launches
    return found and {
        "kernels": found.total,
        "kernels_per_layer": found.per_layer(layers),
        "bytes": found.bytes,
        "needed_bytes": program.needed or None,
        "in_graphs": found.in_graphs,
        "graphs": found.graphs,
        "host_waits": found.waits,
        "largest": [kernel._asdict() for kernel in found.largest()],
    }


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
        "hours": plan.duration and plan.duration.hours,
        "run_steps": plan.duration and plan.duration.steps,
        "cost": plan.cost,
        "padding": {"packed": plan.work.padding, "rectangle": plan.work.rectangle_padding},
        "programs": [
            {
                "name": program.name,
                "bytes": program.bytes,
                "total_bytes": program.total,
                "host_bytes": program.host,
                "refused": program.refused,
                "compile_seconds": program.compile_seconds,
                "collectives": [transfer(found) for found in program.collectives],
                "launches": _launches(program, plan.layers),
            }
            for program in plan.programs
        ],
        "steps": [
            {
                "stage": step.stage,
                "seconds": step.seconds,
                "transfer_seconds": step.transfer_seconds,
                "measured": step.measured,
                "phases": [phase._asdict() | {"seconds": phase.seconds} for phase in step.phases],
            }
            for step in plan.steps
        ],
    }

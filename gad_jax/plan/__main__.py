"""`python -m gad_jax.plan`: does a run fit hardware that is not here, and how long is a step?

Every program of the run is compiled for the target; memory and transfers are what the compiler
says, operations are counted by the mathematics, seconds follow from data sheets.
"""

import dataclasses
import json
import sys
from typing import Any

from gad_jax.base import exits
from gad_jax.base.errors import UserError
from gad_jax.distributed import targets
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.settings.fields import option, section

DESCRIPTION = (
    "Compiles every program of a run for a target and says what each device holds, sends and "
    "computes, whether it fits and what to change if not. No GPU or TPU is needed."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan's own settings, and beside them all of a run's (`python -m gad_jax.train`)."""

    target: str = option(
        "cpu:8", "hardware: h100:2x8 (nodes × GPUs), h200:1x8, v5e:4x4, v5p:2x2x4, v6e:4x4, cpu:8"
    )
    prompt_tokens: float = option(150.0, "mean length of prompts, before the cut", "tokens")
    response_tokens: float = option(385.0, "mean length of responses, before the cut", "tokens")
    json: bool = option(False, "print JSON instead of tables")

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "response_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Settings(Config):
    """A run's settings and the plan's."""

    plan: Plan = section(Plan, "the plan; --target and --json are short for its fields")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code, 0 only where the run fits."""
    settings = options.parse(
        Settings,
        [_long(flag) for flag in (sys.argv[1:] if argv is None else argv)],
        program="python -m gad_jax.plan",
        description=DESCRIPTION,
        config_default="quickstart",
    )
    return exits.run_guarded(lambda: _run(settings))


def _long(flag: str) -> str:
    name, equals, value = flag.partition("=")
    known = {f"--{field.name}": f"--plan.{field.name}" for field in dataclasses.fields(Plan)}
    return known.get(name, name) + equals + value


def _run(settings: Settings) -> int:
    target = targets.parse(settings.plan.target)
    targets.prepare_environment(target)
    from rich.console import Console

    from gad_jax.plan import report

    quiet = settings.plan.json
    notes = Console(stderr=True, highlight=False)
    plan = make(settings, target, lambda what: notes.print(f"compiling {what}", markup=False))
    if quiet:
        print(json.dumps(report.to_json(plan), indent=1))
    else:
        width = None if sys.stdout.isatty() else 160
        report.show(plan, Console(highlight=False, markup=False, width=width))
    return exits.Exit.OK if plan.fits else exits.Exit.USER


def make(settings: Settings, target: targets.Target, say: Any) -> Any:
    """Returns the plan. Raises UserError where mesh and target, or settings, do not fit."""
    from gad_jax.distributed import devices
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.plan import estimate, networks, programs, report, workload
    from gad_jax.training import state

    mesh_settings = settings.mesh
    fixed = mesh_settings.replica * mesh_settings.tensor * (mesh_settings.fsdp or 1)
    if target.devices % fixed or (mesh_settings.fsdp and fixed != target.devices):
        raise UserError(
            f"--target={target.name} has {target.devices} devices and the mesh replica="
            f"{mesh_settings.replica} × fsdp={mesh_settings.fsdp or 'rest'} × tensor="
            f"{mesh_settings.tensor} takes {fixed}; set --mesh.replica, --mesh.fsdp and "
            f"--mesh.tensor to a product of {target.devices}"
        )
    found = targets.devices(target)
    mesh = make_mesh(mesh_settings.replica, mesh_settings.fsdp, mesh_settings.tensor, found)
    with devices.compiling_for(target.backend):
        both = state.network_configs(settings, networks.read)
    _check_heads(both, mesh_settings.tensor)
    lengths = workload.Lengths(
        min(settings.plan.prompt_tokens, settings.data.max_prompt_tokens / 2),
        min(settings.plan.response_tokens, settings.rollout.max_new_tokens / 2),
    )
    work = workload.draw(settings, lengths, target)
    compiled = programs.compile_all(settings, both, mesh, target, work, say)
    chip = estimate.chip_of(target)
    steps = [
        estimate.step(settings, stage, both, target, chip, work, compiled)
        for stage in settings.stages
    ]
    return report.Plan(target, chip, dict(mesh.shape), compiled, steps, work)


def _check_heads(networks: tuple[Any, Any], tensor: int) -> None:
    for network in networks:
        for what, count in (("key/value heads", network.kv_heads), ("heads", network.heads)):
            if count % tensor:
                raise UserError(
                    f"--mesh.tensor={tensor} does not divide the {count} {what} of the "
                    f"{network.family} network; use a divisor"
                )


if __name__ == "__main__":
    sys.exit(main())

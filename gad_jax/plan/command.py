"""Makes a plan and prints it.

Every program of the run is compiled for the target. Memory and transfers come from the compiler,
FLOPs are analytic, and seconds follow from data sheets.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from gad_jax.base import exits, verbosity
from gad_jax.base.errors import UserError
from gad_jax.distributed import chips, devices, targets
from gad_jax.distributed.mesh import make_mesh
from gad_jax.distributed.targets import Target
from gad_jax.models import splitting
from gad_jax.plan import (
    cards,
    duration,
    estimate,
    networks,
    programs,
    report,
    slices,
    tables,
    workload,
)
from gad_jax.plan.cards import Answer
from gad_jax.plan.report import Plan
from gad_jax.settings.config import with_limits
from gad_jax.settings.operation import Mesh
from gad_jax.settings.sections import LONGEST_PROMPT, LONGEST_RESPONSE
from gad_jax.training import architectures, levers
from gad_jax.training.rewards import models

if TYPE_CHECKING:
    from gad_jax.plan.__main__ import PlanCommand


def run(settings: "PlanCommand", target: Target | None) -> int:
    """Prints the plan, without a target the smallest card; returns the exit code, 0 if it fits."""
    if "custom" in settings.stages:
        raise UserError(
            f"--stage={settings.stage} has custom, whose step only a run knows; plan a stage "
            "that is like it, such as gad"
        )
    notes = Console(stderr=True, highlight=False)

    def say(what: str) -> None:
        notes.print(what, markup=False)

    console = Console(highlight=False, markup=False, width=tables.width())
    if target is None:
        answer = smallest(settings, say)
        if settings.plan.json:
            print(json.dumps(cards.to_json(answer, settings.plan.price_per_hour), indent=1))
        else:
            tables.show_answer(answer, settings.plan.price_per_hour, console)
        return exits.Exit.OK if answer.cards else exits.Exit.DOES_NOT_FIT
    plan = make(settings, target, say)
    if settings.plan.json:
        print(json.dumps(report.to_json(plan), indent=1))
    else:
        tables.show(plan, console)
    return exits.Exit.OK if plan.fits else exits.Exit.DOES_NOT_FIT


def smallest(settings: "PlanCommand", say: Callable[[str], None]) -> Answer:
    """Returns the smallest card that holds the run; `say` is told what is being compiled."""
    one = cards.on_one(settings)
    if settings.mesh.asks_several:
        say("for one card, so with --mesh.replica=1 --mesh.fsdp=1 --mesh.tensor=1")
    with devices.compiling_for("gpu"):
        both = architectures.configs(one, networks.read)
        one = _with_limits(one, min(network.max_positions for network in both), say)
        work = workload.draw(one, _lengths(one), targets.parse("h100:1x1"))
        rewarding = models.networks(one, both[0].compute_dtype, networks.read)

        def plan_for(name: str) -> Plan:
            return make(one, targets.parse(f"{name}:1x1"), say)

        return cards.choose(one, both, work, plan_for, rewarding)


def make(settings: "PlanCommand", target: Target, say: Callable[[str], None]) -> Plan:
    """Returns the plan; `say` is told what is being compiled.

    Raises UserError if the mesh does not suit the target or the networks.
    """
    _check_mesh(settings.mesh, target)
    of_stages = duration.steps_of(settings, settings.plan.rows)  # refuses too few rows
    if settings.student.matmul == "float8":
        devices.require_float8(target.name, target.platform, chips.capability(target.kind))
    found = targets.devices(target)
    mesh = make_mesh(settings.mesh.replica, settings.mesh.fsdp, settings.mesh.tensor, found)
    with devices.compiling_for(target.backend):
        architectures.check_devices(settings)
        both = architectures.configs(settings, networks.read)
        rewarding = models.networks(settings, both[0].compute_dtype, networks.read)
    settings = _with_limits(settings, min(network.max_positions for network in both), say)
    for network in (*both, *rewarding.values()):
        splitting.check(network, mesh)
    work = workload.draw(settings, _lengths(settings), target)

    def compiling(what: str) -> None:
        if not verbosity.quiet():
            say(f"compiling {what} for {target.name}")

    kernels = settings.plan.kernels
    compiled = programs.compile_all(
        settings, both, mesh, target, work, compiling, count_kernels=kernels, rewarding=rewarding
    )
    chip = estimate.chip_of(target)
    measured = {}
    if target.kind == "cpu":  # this machine
        compiling("and timing a few layers")
        measured = slices.measure(settings, both, mesh, target, chip, work)
    about = (both, target, chip, work, compiled, rewarding)
    steps = [
        estimate.step(settings, stage, *about, measured.get(stage)) for stage in settings.stages
    ]
    taken = duration.of(of_stages, steps)
    price = settings.plan.price_per_hour
    layers = both[0].layers
    plan = Plan(target, chip, dict(mesh.shape), compiled, steps, work, taken, price, layers=layers)
    if plan.fits:
        return plan
    with devices.compiling_for(target.backend):
        room = int(report.USABLE * chip.memory)
        lengths = workload.lengths_of(work)
        fit = levers.fit(settings, both, mesh, lengths, room, rewarding)
    return dataclasses.replace(plan, instead=fit.flags if fit.need.total <= room else "")


def _lengths(settings: "PlanCommand") -> workload.LognormalLengths:
    """Returns the mean lengths, those of the paper's data where none is given; one near the limit
    would be cut too often to stay the mean. Raises UserError for a given one beyond the limit."""

    def mean(name: str, usual: float, flag: str, limit: int) -> float:
        given = getattr(settings.plan, name)
        if given > limit:
            raise UserError(
                f"--{name}={given:g} is a mean beyond the run's limit, {flag}={limit}; lower "
                f"it, or raise {flag}"
            )
        return given or min(usual, limit / 2)

    return workload.LognormalLengths(
        mean("prompt_tokens", 150.0, "--data.max_prompt_tokens", settings.data.max_prompt_tokens),
        mean("response_tokens", 385.0, "--rollout.max_new_tokens", settings.rollout.max_new_tokens),
    )


def _with_limits(
    settings: "PlanCommand", positions: int, say: Callable[[str], None]
) -> "PlanCommand":
    """Returns the settings with the paper's limits, or what fits, where a run takes its own from
    the data, which a plan does not read."""
    data, rollout = settings.data, settings.rollout
    if data.max_prompt_tokens and rollout.max_new_tokens:
        return settings
    prompt = data.max_prompt_tokens or min(LONGEST_PROMPT, positions // 2)
    response = rollout.max_new_tokens or min(LONGEST_RESPONSE, positions // 2)
    say(
        f"for prompts of up to {prompt} and responses of up to {response} tokens; a run takes "
        "these from its data, --data.max_prompt_tokens and --rollout.max_new_tokens set them"
    )
    return with_limits(settings, prompt, response)


def _check_mesh(mesh: Mesh, target: Target) -> None:
    fixed = mesh.replica * mesh.tensor * (mesh.fsdp or 1)
    if target.devices % fixed or (mesh.fsdp and fixed != target.devices):
        raise UserError(
            f"--target={target.name} has {target.devices} devices and the mesh replica="
            f"{mesh.replica} × fsdp={mesh.fsdp or 'rest'} × tensor={mesh.tensor} takes {fixed}; "
            f"set --mesh.replica, --mesh.fsdp and --mesh.tensor to a product of {target.devices}"
        )

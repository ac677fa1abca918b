"""The smallest card that holds a run.

The arithmetic of `training/footprint.py` names a candidate, and the compiler confirms it: programs
take nearly the same memory on all cards, so one or two compilations answer for all of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.sharding import Mesh

from gad_jax.base.errors import UserError
from gad_jax.distributed import chips, targets
from gad_jax.distributed.chips import CARDS, CHIPS
from gad_jax.distributed.mesh import make_mesh
from gad_jax.plan import duration, estimate, report
from gad_jax.plan.duration import Duration
from gad_jax.plan.estimate import Step
from gad_jax.plan.report import USABLE, Plan
from gad_jax.plan.workload import Workload, lengths_of
from gad_jax.settings.operation import Mesh as MeshSettings
from gad_jax.training import footprint, levers
from gad_jax.training.footprint import Lengths, Need, Networks
from gad_jax.training.rewards import models

if TYPE_CHECKING:
    from gad_jax.plan.__main__ import PlanCommand

MARGIN = 0.92
"""An estimate is up to this factor off, so a card that holds that much is tried."""
NODE = ("a100-80", "h100", "h200", "b200")
"""Cards that are sold eight to a node."""


class Card(NamedTuple):
    """A card that holds the run, a step of each stage on it, and the whole run."""

    name: str
    steps: list[Step]
    duration: Duration | None


class Smaller(NamedTuple):
    """A card that would hold the run with other settings, and what that needs by estimate."""

    name: str
    flags: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """Which cards hold a run.

    `need` is the largest program by estimate, `plan` the compiled plan of the smallest card; None
    where no card holds the run or its compiler is not here, which `missing` says. `cards` hold the
    run, the smallest first; `nodes` are a card's name and how many of them hold it.
    """

    need: Need
    plan: Plan | None
    missing: str
    cards: list[Card]
    smaller: list[Smaller]
    nodes: list[tuple[str, int]]

    @property
    def bytes(self) -> int:
        """What the run needs on one card: compiled, or by estimate."""
        return self.plan.peak.total if self.plan else self.need.total


def usable(name: str) -> float:
    """Returns the bytes of a card that a run may take."""
    return USABLE * CHIPS[name].memory


def on_one(settings: "PlanCommand") -> "PlanCommand":
    """Returns the run on one device."""
    return dataclasses.replace(settings, mesh=MeshSettings(1, 1, 1))


def choose(
    settings: "PlanCommand",
    networks: Networks,
    work: Workload,
    plan_for: Callable[[str], Plan],
    rewarding: models.Networks = models.NONE,
) -> Answer:
    """Returns the smallest card; `plan_for` compiles the run for the card of that name.

    `settings` are those of one device, with limits on the lengths. `rewarding` are the reward
    models.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    lengths = lengths_of(work)
    suited = [name for name in CARDS if _suits(settings, name)]
    need = footprint.largest(settings, networks, mesh, lengths, rewarding)
    missing = _missing_compiler()
    plan, needed = None, float(need.total)
    if not missing:
        plan, needed = _compile(need.total, suited, plan_for)
    holding = [name for name in suited if usable(name) >= needed]
    smaller = [name for name in suited if name not in holding]
    return Answer(
        need,
        plan,
        missing,
        [_card(settings, networks, work, name, rewarding) for name in holding],
        _with_less(settings, networks, mesh, lengths, smaller, rewarding),
        [] if holding else _nodes(settings, networks, work, rewarding),
    )


def _missing_compiler() -> str:
    try:
        targets.devices(targets.parse(f"{CARDS[0]}:1x1"))
    except UserError as error:
        return str(error)
    return ""


def _suits(settings: "PlanCommand", name: str) -> bool:
    """Returns whether a card has the matmuls that the run is to use."""
    return settings.student.matmul == "auto" or chips.capability(name) >= chips.FLOAT8


def _compile(
    estimated: int, names: Sequence[str], plan_for: Callable[[str], Plan]
) -> tuple[Plan | None, float]:
    """Returns the plan of the smallest card that holds the run, and the bytes that it needs."""
    tried = [name for name in names if usable(name) >= MARGIN * estimated]
    needed = float(estimated)
    while tried:
        plan = plan_for(tried[0])
        needed = float(plan.peak.total)
        if plan.fits:
            return plan, needed
        tried = [name for name in tried[1:] if usable(name) >= needed]
    return None, needed


def _card(
    settings: "PlanCommand",
    networks: Networks,
    work: Workload,
    name: str,
    rewarding: models.Networks,
) -> Card:
    target = targets.parse(f"{name}:1x1")
    steps = [
        estimate.step(settings, stage, networks, target, CHIPS[name], work, [], rewarding)
        for stage in settings.stages
    ]
    taken = duration.of(duration.steps_of(settings, settings.plan.rows), steps)
    return Card(name, steps, taken)


def _with_less(
    settings: "PlanCommand",
    networks: Networks,
    mesh: Mesh,
    lengths: Lengths,
    names: Sequence[str],
    rewarding: models.Networks,
) -> list[Smaller]:
    found: list[Smaller] = []
    for name in names:
        room = int(usable(name))
        fit = levers.fit(settings, networks, mesh, lengths, room, rewarding)
        if fit.need.total <= room and fit.changes:
            found.append(Smaller(name, fit.flags, fit.need.total))
    return found


def _nodes(
    settings: "PlanCommand", networks: Networks, work: Workload, rewarding: models.Networks
) -> list[tuple[str, int]]:
    """Returns for cards of a node how many of them hold the run, by estimate."""
    found: list[tuple[str, int]] = []
    present = jax.devices()
    for name in [each for each in NODE if _suits(settings, each)]:
        for count in (2, 4, 8):
            if count > len(present):
                break
            mesh = make_mesh(fsdp=count, devices=present[:count])
            need = footprint.largest(settings, networks, mesh, lengths_of(work), rewarding)
            if need.total <= usable(name):
                found.append((name, count))
                break
    return found


def to_json(answer: Answer, price: float) -> dict[str, Any]:
    """Returns the answer for json.dumps; `price` is that of one card and hour, 0 if not known."""

    def card(found: Card) -> dict[str, Any]:
        hours = found.duration and found.duration.hours
        return {
            "name": found.name,
            "usable_bytes": int(usable(found.name)),
            "seconds": {step.stage: step.seconds for step in found.steps},
            "hours": hours,
            "cost": hours * price if hours and price else None,
        }

    return {
        "smallest": answer.cards[0].name if answer.cards else None,
        "fits": bool(answer.cards),
        "needed_bytes": answer.bytes,
        "compiled": answer.plan is not None,
        "estimate": {"program": answer.need.program, "bytes": answer.need.bytes},
        "cards": [card(found) for found in answer.cards],
        "smaller": [found._asdict() for found in answer.smaller],
        "nodes": [{"name": name, "devices": count} for name, count in answer.nodes],
        "plan": answer.plan and report.to_json(answer.plan),
    }

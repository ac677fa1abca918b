"""The errors that end a run early: what happened, and which checkpoint to return to."""

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

import jax

from gad_jax.base.errors import CollapseError, NumericsError, StorageError
from gad_jax.distributed import sharding
from gad_jax.settings.alarms import Health
from gad_jax.training import health
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.health import Event
from gad_jax.types import TrainState

SHOWN_ROWS = 8


def take_broken_leaves(metrics: MutableMapping[str, float], state: TrainState) -> dict[str, str]:
    """Removes `part/broken_leaf` from the metrics. Returns, for each network with a non-finite
    gradient, the path of the first such leaf."""
    broken = {}
    for part in ("generator", "discriminator"):
        index = int(metrics.pop(f"{part}/broken_leaf", -1))
        if index >= 0:
            paths = jax.tree_util.tree_leaves_with_path(getattr(state, part))
            broken[part] = sharding.path_name(paths[index][0])
    return broken


def numerics(
    step: int,
    metrics: Mapping[str, float],
    broken_leaves: Mapping[str, str],
    row_ids: list[str],
    checkpoints: Checkpoints,
) -> NumericsError:
    """Returns the error that ends a run after too many consecutive skipped steps."""
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    wrong += [f"the {part}'s gradient of {leaf}" for part, leaf in broken_leaves.items()]
    shown = ", ".join(row_ids[:SHOWN_ROWS]) + (" …" if len(row_ids) > SHOWN_ROWS else "")
    return NumericsError(
        f"step {step}: {int(metrics['skips/consecutive'])} consecutive steps were skipped because "
        f"{', '.join(wrong)} was not finite (rows of the last: {shown}); the "
        f"weights from before the first of them are saved, and {_last_good('skips', checkpoints)}; "
        "lower the learning rate of the network at fault"
    )


def collapse(step: int, event: Event, checkpoints: Checkpoints) -> CollapseError:
    """Returns the error that ends a run when an alarm says so; its state has been saved."""
    return CollapseError(
        f"step {step}: {event.sentence}; the run is saved and stopped; "
        f"{_way_back(event.monitor, checkpoints)}"
    )


def refuse_collapsed(settings: Health, state: health.State, checkpoints: Checkpoints) -> None:
    """Raises CollapseError where the restored state has an alarm that stops a run."""
    for name in health.alarms(state):
        if getattr(settings, name).action == "stop":
            raise CollapseError(
                f"{checkpoints.directory} ends where the alarm {name!r} stopped the run; "
                f"{_way_back(name, checkpoints)}"
            )


def _way_back(monitor: str, checkpoints: Checkpoints) -> str:
    return (
        f"{_last_good(monitor, checkpoints)}; docs/reliability.md says what to do, and "
        f"--health.{monitor}.action=warn resumes from here anyway"
    )


def _last_good(monitor: str, checkpoints: Checkpoints) -> str:
    """Returns a sentence on the newest checkpoint in which the monitor was within its limit."""

    def is_good(step: int) -> bool:
        try:
            meta: dict[str, Any] = checkpoints.read_meta(step)
        except StorageError:  # a damaged one
            return False
        return health.is_well(meta.get("health", {}), monitor)

    good = [step for step in checkpoints.steps() if is_good(step)]
    return f"the last good checkpoint is {max(good, default='none that was kept')}"

"""The errors that end a run early: what happened, and which checkpoint to return to."""

import math
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gad_jax.base.errors import CollapseError, NumericsError, StorageError
from gad_jax.core import hosted
from gad_jax.distributed import sharding
from gad_jax.settings.alarms import Health
from gad_jax.training import health
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.health import Event
from gad_jax.training.stages import Span
from gad_jax.types import TrainState

SHOWN_ROWS = 8


def take_broken(metrics: MutableMapping[str, float], state: TrainState) -> list[str]:
    """Removes what a step says of its broken leaves from the metrics, and returns it in words: of
    each network the first broken gradient, else the first broken update."""
    gradients = take_broken_leaves(metrics, state)
    updates = take_broken_leaves(metrics, state, "broken_update")
    words = [f"the {part}'s gradient of {leaf}" for part, leaf in gradients.items()]
    for part, leaf in updates.items():
        if part not in gradients and math.isfinite(metrics.get(f"{part}/loss", math.nan)):
            words.append(f"the {part}'s update of {leaf}")
    return words


def take_broken_leaves(
    metrics: MutableMapping[str, float], state: TrainState, name: str = "broken_leaf"
) -> dict[str, str]:
    """Removes `part/broken_leaf` from the metrics. Returns, for each network with a non-finite
    gradient, the path of the first such leaf. `name` may also be `broken_update`."""
    broken = {}
    for part in ("generator", "discriminator"):
        index = int(metrics.pop(f"{part}/{name}", -1))
        if index >= 0:
            paths = jax.tree_util.tree_leaves_with_path(getattr(state, part))
            broken[part] = sharding.path_name(paths[index][0])
    return broken


def broken_state(state: TrainState) -> str:
    """Returns which array of the state has a non-finite number, in words; '' if none has."""
    parts = {
        "the generator's weights": state.generator,
        "the discriminator's weights": state.discriminator,
        "the reference's weights": state.reference,
        "the generator's optimizer moments": state.generator_optimizer,
        "the discriminator's optimizer moments": state.discriminator_optimizer,
    }
    parts = {name: tree for name, tree in parts.items() if jax.tree.leaves(tree)}
    finite = jax.device_get(_are_finite(tuple(parts.values())))
    return next((name for name, fine in zip(parts, finite, strict=True) if not fine), "")


@jax.jit
def _are_finite(trees: tuple[Any, ...]) -> list[Array]:
    def total(tree: Any) -> Array:
        sums = [hosted.sum_of_sizes(leaf) for leaf in jax.tree.leaves(tree)]
        return jnp.all(jnp.isfinite(jnp.stack(sums)))

    return [total(tree) for tree in trees]


def not_saved(step: int, broken: str, checkpoints: Checkpoints) -> NumericsError:
    """Returns the error that ends a run whose state must not replace its checkpoints."""
    return NumericsError(
        f"step {step}: {broken} are not finite, so this step was not saved; the same command "
        f"resumes from the last checkpoint, {max(checkpoints.steps(), default='which is none')}"
    )


def numerics(
    step: int,
    metrics: Mapping[str, float],
    broken_leaves: Sequence[str],
    row_ids: list[str],
    checkpoints: Checkpoints,
    unsaved: str = "",
) -> NumericsError:
    """Returns the error that ends a run after too many consecutive skipped steps.

    `unsaved` is what `broken_state` says; '' where the state has been saved.
    """
    skipped = int(metrics["skips/consecutive"])
    before = step - skipped
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    loss = any(name.endswith("/loss") for name in wrong)
    wrong += broken_leaves
    shown = ", ".join(row_ids[:SHOWN_ROWS]) + (" …" if len(row_ids) > SHOWN_ROWS else "")
    if unsaved:
        saved = f"this step was not saved, because {unsaved} are not finite"
    elif loss:  # which is that of these weights, on other rows in each of the steps
        saved = f"the weights of step {before} are saved, but it is they that give such a loss"
    else:
        saved = "the weights from before the first of them are saved"
    good = _last_good("skips", checkpoints, before - 1 if loss else step)
    return NumericsError(
        f"step {step}: {skipped} consecutive steps were skipped because "
        f"{', '.join(wrong)} was not finite (rows of the last: {shown}); {saved}, and {good}; "
        "lower the learning rate of the network at fault"
    )


def refuse_skipped_end(span: Span, state: TrainState, last: bool, run: Path) -> None:
    """Raises NumericsError where a stage ended with nothing but skipped steps, or the last stage
    with several of them."""
    skipped = int(jax.device_get(state.skips)[1])
    steps = span.end - span.start
    if skipped < steps and not (last and skipped > 1):
        return
    which = f"all {steps}" if skipped == steps else f"the last {skipped} of {steps}"
    raise NumericsError(
        f"step {span.end}: {which} steps of the stage {span.stage} were skipped as non-finite, so "
        f"the weights are those of step {span.end - skipped}; nothing was exported; lower the "
        "learning rates in a new run, or take these weights with python -m gad_jax.export "
        f"{run}@last"
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


def _last_good(monitor: str, checkpoints: Checkpoints, newest: int | None = None) -> str:
    """Returns a sentence on the newest checkpoint in which the monitor was within its limit, of
    those up to the step `newest`."""

    def is_good(step: int) -> bool:
        try:
            meta: dict[str, Any] = checkpoints.read_meta(step)
        except StorageError:  # a damaged one
            return False
        return health.is_well(meta.get("health", {}), monitor)

    steps = [step for step in checkpoints.steps() if newest is None or step <= newest]
    good = [step for step in steps if is_good(step)]
    return f"the last good checkpoint is {max(good, default='none that was kept')}"

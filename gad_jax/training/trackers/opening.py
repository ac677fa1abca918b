"""From the settings `tracking.` to the trackers of a run, and what they need before it begins."""

import importlib.util
from pathlib import Path
from typing import Any

from gad_jax import __version__
from gad_jax.base.errors import UserError
from gad_jax.base.redaction import redact
from gad_jax.distributed import processes
from gad_jax.settings import fields
from gad_jax.settings.config import Config
from gad_jax.settings.tracking import Tracking
from gad_jax.training.trackers import mlflow, trackio, wandb
from gad_jax.training.trackers.sending import Open, Trackers
from gad_jax.training.trackers.service import About

OPENERS: dict[str, Open] = {"wandb": wandb.Run, "mlflow": mlflow.Run, "trackio": trackio.Run}


def require(tracking: Tracking) -> None:
    """Raises UserError where the package of a tracker is missing, or nobody is logged in to it."""
    for name in tracking.to:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--tracking.to={name} needs the package {name}, which is not installed; run `pip "
                f"install {name}`, or leave {name} out"
            )
    if "wandb" in tracking.to:
        wandb.require_login()


def trackers(config: Config) -> Trackers | None:
    """Returns the trackers of a run; None where the settings name none, or another process than the
    first asks."""
    tracking, run = config.tracking, Path(config.run_dir)
    if not tracking.to or not processes.is_first():
        return None
    about = About(
        project=tracking.project,
        name=tracking.name or run.resolve().name,
        tags=tracking.tags,
        settings=settings(config),
        directory=run,
    )
    return Trackers({name: OPENERS[name] for name in tracking.to}, about)


def settings(config: Config) -> dict[str, Any]:
    """Returns the settings by dotted name as trackers get them: without secrets."""
    found: dict[str, Any] = {"gad_jax": __version__}
    for leaf in fields.leaves(Config, config):
        plain = isinstance(leaf.value, bool | int | float)
        found[leaf.path] = leaf.value if plain else redact(fields.show(leaf.value))
    return found

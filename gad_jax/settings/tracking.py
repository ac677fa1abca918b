"""Experiment trackers that a run reports to, next to its own files."""

from dataclasses import dataclass

from gad_jax.settings.fields import Checked, FieldError, did_you_mean, option

TRACKERS = ("wandb", "mlflow", "trackio")
"""Names of trackers, which are those of their Python packages too."""


@dataclass(frozen=True)
class Tracking(Checked):
    """Trackers that show a run next to others. metrics.jsonl has all numbers without them."""

    to: tuple[str, ...] = option(
        (),
        "trackers to send metrics, samples and settings to: wandb, mlflow, trackio, several with "
        "commas",
    )
    project: str = option(
        "gad-jax", "project of the run there; an experiment in MLflow", filled=True
    )
    name: str = option("", "name of the run there; empty: the last part of run_dir")
    tags: tuple[str, ...] = option((), "tags of the run there")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.to:
            if name not in TRACKERS:
                known = ", ".join(TRACKERS)
                raise FieldError(
                    "to", f"to={name} is no tracker; use {known}{did_you_mean(name, TRACKERS)}"
                )
        for name, values in (("to", self.to), ("tags", self.tags)):
            if len(set(values)) < len(values):
                raise FieldError(name, f"{name}={','.join(values)} names one twice; name it once")
        for name in ("name", "project"):
            if not getattr(self, name).isprintable():
                raise FieldError(
                    name, f"{name}={getattr(self, name)!r}: remove what is unprintable"
                )
        if not all(tag.strip() and tag.isprintable() for tag in self.tags):
            raise FieldError("tags", f"tags={self.tags!r} has one that is empty or unprintable")

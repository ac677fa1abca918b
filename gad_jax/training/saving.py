"""What a run saves with its state, and how it finds both again."""

import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from gad_jax.base import files
from gad_jax.base.errors import UserError
from gad_jax.core.layout import Shape
from gad_jax.distributed import processes
from gad_jax.metrics import heldout
from gad_jax.settings.alarms import Health
from gad_jax.settings.operation import Checkpoint
from gad_jax.training import bases, custom_step, health, state
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.custom_step import CustomStep
from gad_jax.training.records import Meta
from gad_jax.training.rewards import paying
from gad_jax.training.stages import Span
from gad_jax.types import TrainState

logger = logging.getLogger(__name__)


class Resumed(NamedTuple):
    """A run where its newest checkpoint left it, or before its first step; `shapes` are the
    packer's, and `host` the arrays that were on the host."""

    state: TrainState
    health: health.State
    shapes: set[tuple[Shape, ...]]
    host: dict[str, np.ndarray]

    @classmethod
    def first(cls, train_state: TrainState) -> "Resumed":
        """Returns a run before its first step."""
        return cls(train_state, {}, set(), {})


class Best(NamedTuple):
    """The best checkpoint: the one with the highest score of its stage."""

    step: int
    score: float
    metric: str

    def __str__(self) -> str:
        return f"step {self.step} ({self.metric} {self.score:.4f})"


def is_good(settings: Health) -> Callable[[Meta], bool]:
    """Returns the function that says whether a checkpoint is from before an alarm that stops."""
    stopping = [name for name in health.MONITORS if getattr(settings, name).action == "stop"]
    return lambda meta: all(health.is_well(meta.get("health", {}), name) for name in stopping)


class Saver:
    """Saves and restores a run, whose `rows` have this `fingerprint`.

    `measured` says what its evaluations measure: scores of others do not compare with theirs.
    `identities` are those of the bases of its networks with adapters, `rewards` those of the
    functions that pay its generator. `step` is the user's own, for a run with one.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        options: Checkpoint,
        fingerprint: str,
        rows: int,
        measured: str = "",
        identities: dict[str, str] | None = None,
        rewards: dict[str, str] | None = None,
        step: CustomStep | None = None,
    ) -> None:
        self.checkpoints, self.options = checkpoints, options
        self.fingerprint, self.rows = fingerprint, rows
        self.measured, self.identities = measured, identities or {}
        self.rewards, self.custom_step = rewards or {}, step

    def save(
        self,
        step: int,
        stage: str,
        train_state: TrainState,
        health_state: health.State,
        shapes: set[tuple[Shape, ...]],
        result: heldout.HeldoutResult | None,
        host: dict[str, np.ndarray] | None = None,
        total_steps: int = 0,
    ) -> None:
        """Saves the run after a step, and reports it when that is done. `result` is the evaluation
        of this step, if there is one, and `host` are arrays that every process holds."""
        self.checkpoints.wait()  # the best of them is known when all are complete
        meta = self.meta(step, stage) | {
            "health": health_state,
            "shapes": sorted(shapes),  # a resumed run packs as this one would have
        }
        score = self.score(result)
        if score is not None and self.checkpoints.would_be_best(score, meta):
            best = Best(step, score, self.options.best_metric)
        else:
            best = self.best()
        meta["best"] = best._asdict() if best else None
        report = partial(self.report, step, total_steps, stage)
        self.checkpoints.save(step, train_state, meta, score, host, report)

    def meta(self, step: int, stage: str) -> Meta:
        """Returns what is known of the network at a step: its stage, and the rows behind it."""
        options = self.options
        band = options.best_min_length_ratio, options.best_max_length_ratio
        ranking = [stage, options.best_metric, *band, self.measured]
        about = {"step": step, "stage": stage, "data": self.fingerprint, "rows": self.rows}
        about |= {"ranking": json.dumps(ranking)}
        if stage == "gad" and self.rewards:
            about["rewards"] = self.rewards
        if stage == "custom" and self.custom_step:
            about["custom"] = self.custom_step.identity
        return about | ({"bases": self.identities} if self.identities else {})

    def best(self) -> Best | None:
        """Returns the best of the complete checkpoints, None where none has a score."""
        step = self.checkpoints.best()
        score = None if step is None else self.checkpoints.score(step)
        if step is None or score is None:
            return None
        return Best(step, score, self.options.best_metric)

    def improves(self, result: heldout.HeldoutResult | None, step: int, stage: str) -> bool:
        """Returns whether a checkpoint of this step would be the best and is to be kept."""
        meta = self.meta(step, stage)
        return self.options.keep_best and self.checkpoints.would_be_best(self.score(result), meta)

    def rescore(self, step: int, stage: str, result: heldout.HeldoutResult) -> None:
        """Ranks a saved step by an evaluation that was made later."""
        score, meta = self.score(result), self.meta(step, stage)
        best = Best(step, score or 0.0, self.options.best_metric)
        about: Meta = {"ranking": meta["ranking"]}
        if self.checkpoints.would_be_best(score, meta):
            about["best"] = best._asdict()
        self.checkpoints.rescore(step, score, about)

    def report(self, step: int, total_steps: int, stage: str) -> None:
        """Writes status.json, which is for people and scripts: no command reads it."""
        if processes.is_first():
            best = self.best()
            status = {"step": step, "total_steps": total_steps, "stage": stage}
            status |= {"best": best._asdict() if best else None}
            path = self.checkpoints.directory.parent / "status.json"
            files.write_atomic(path, json.dumps(status) + "\n")

    def score(self, result: heldout.HeldoutResult | None) -> float | None:
        """Returns what ranks a checkpoint, if its answers are of acceptable length."""
        if result is None:
            return None
        band = self.options.best_min_length_ratio, self.options.best_max_length_ratio
        return result.score(self.options.best_metric, *band)

    def restore(self, spans: tuple[Span, ...], mesh: Mesh, run_dir: str) -> Resumed | None:
        """Returns the run of the newest intact checkpoint, or None where there is none yet.

        Raises UserError where that was trained on other data, or on another base.
        """
        if self.checkpoints.latest() is None:
            return None
        programs = {span.stage: span.program for span in spans}

        def expected(meta: dict[str, Any]) -> TrainState:
            if meta["data"] != self.fingerprint:
                raise UserError(
                    f"{run_dir} was trained on other rows or another tokenizer (fingerprint "
                    f"{meta['data'][:12]}, now {self.fingerprint[:12]}); give the data it had, or "
                    "choose another --run_dir"
                )
            bases.check(meta.get("bases", {}), self.identities, run_dir)
            self._check_code(meta, run_dir)
            return state.abstract(programs[meta["stage"]], mesh)

        restored = self.checkpoints.restore(expected)
        shapes = {together(kept) for kept in restored.meta.get("shapes", ())}
        health_state = restored.meta.get("health", {})
        return Resumed(restored.state, health_state, shapes, restored.host)

    def _check_code(self, meta: Meta, run_dir: str) -> None:
        """Raises UserError for a function of the user that has changed, or warns where that was
        accepted."""
        for clause in (
            *paying.changed(meta.get("rewards", {}), self.rewards),
            *custom_step.changed(meta.get("custom", ""), self.custom_step),
        ):
            if not self.options.accept_new_code:
                raise UserError(
                    f"{run_dir} has steps {clause}; restore it, go on with the new one by "
                    "--checkpoint.accept_new_code, or choose another --run_dir"
                )
            if processes.is_first():
                logger.warning("warning: %s has steps %s", run_dir, clause)


def together(kept: list[Any]) -> tuple[Shape, ...]:
    """Returns shapes as the packer has them. Older checkpoints have single ones."""
    shapes = kept if isinstance(kept[0], list) else [kept]
    return tuple((micro, rows, length) for micro, rows, length in shapes)

"""What a run saves with its state, and how it finds both again."""

from typing import Any, NamedTuple

from jax.sharding import Mesh

from gad_jax.base.errors import UserError
from gad_jax.core.layout import Shape
from gad_jax.metrics import heldout
from gad_jax.settings.operation import Checkpoint
from gad_jax.training import health, state
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.stages import Span
from gad_jax.types import TrainState


class Resumed(NamedTuple):
    """A run where its newest checkpoint left it; `shapes` are those of the packed rows so far."""

    state: TrainState
    health: health.State
    shapes: set[Shape]


class Saver:
    """Saves and restores a run, whose `rows` have this `fingerprint`."""

    def __init__(
        self, checkpoints: Checkpoints, options: Checkpoint, fingerprint: str, rows: int
    ) -> None:
        self.checkpoints, self.options = checkpoints, options
        self.fingerprint, self.rows = fingerprint, rows

    def save(
        self,
        step: int,
        stage: str,
        train_state: TrainState,
        health_state: health.State,
        shapes: set[Shape],
        result: heldout.HeldoutResult | None,
    ) -> None:
        """Saves the run after a step; `result` is the evaluation of this step, if there is one."""
        meta = self.meta(step, stage) | {
            "health": health_state,
            "shapes": sorted(shapes),  # a resumed run packs as this one would have
        }
        self.checkpoints.save(step, train_state, meta, self.score(result))

    def meta(self, step: int, stage: str) -> dict[str, Any]:
        """Returns what is known of the network at a step: its stage, and the rows behind it."""
        return {"step": step, "stage": stage, "data": self.fingerprint, "rows": self.rows}

    def rescore(self, step: int, result: heldout.HeldoutResult) -> None:
        """Ranks a saved step by an evaluation that was made later."""
        self.checkpoints.rescore(step, self.score(result))

    def score(self, result: heldout.HeldoutResult | None) -> float | None:
        """Returns what ranks a checkpoint, if its answers are of acceptable length."""
        if result is None:
            return None
        band = self.options.best_min_length_ratio, self.options.best_max_length_ratio
        return result.score(self.options.best_metric, *band)

    def restore(self, spans: tuple[Span, ...], mesh: Mesh, run_dir: str) -> Resumed | None:
        """Returns the run of the newest intact checkpoint, or None where there is none yet.

        Raises UserError where that was trained on other data.
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
            return state.abstract(programs[meta["stage"]], mesh)

        restored = self.checkpoints.restore(expected)
        shapes = {tuple(shape) for shape in restored.meta.get("shapes", ())}
        return Resumed(restored.state, restored.meta.get("health", {}), shapes)

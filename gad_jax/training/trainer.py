"""One run: the loop over its stages and steps, with evaluations, alarms and checkpoints.

`setup.build` makes a trainer and its parts. An iteration is in `iteration.py`.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from jax.sharding import Mesh

from gad_jax.base import exits
from gad_jax.base.exits import StopRequest
from gad_jax.metrics import heldout
from gad_jax.models import adapters
from gad_jax.models.config import DecoderConfig
from gad_jax.settings.alarms import Health
from gad_jax.settings.operation import Limits
from gad_jax.training import health, state, stops
from gad_jax.training.deadline import Deadline
from gad_jax.training.evaluating import Evaluations
from gad_jax.training.iteration import Iteration
from gad_jax.training.saving import Saver
from gad_jax.training.snapshots import Interrupted, Snapshots
from gad_jax.training.stages import Span
from gad_jax.training.tracker import Tracker
from gad_jax.types import Frozen, Params, TrainState


@dataclasses.dataclass
class Trainer:
    """The run's parts, and its state, which `run` replaces. Use it under `jax.set_mesh(mesh)`.

    `step` counts the steps that are done. `row_ids` name the training rows in errors.
    """

    mesh: Mesh
    networks: tuple[DecoderConfig, DecoderConfig]
    spans: tuple[Span, ...]
    iteration: Iteration
    evaluations: Evaluations
    saver: Saver
    tracker: Tracker
    deadline: Deadline
    health_settings: Health
    limits: Limits
    max_skips: int
    evaluate_every: int
    load_discriminator: Callable[[], Params]
    row_ids: list[str]
    state: TrainState
    frozen: Frozen
    snapshots: Snapshots
    step: int
    health_state: health.State

    @property
    def total_steps(self) -> int:
        """The steps of all stages."""
        return self.spans[-1].end

    @property
    def generator(self) -> Params:
        """The student's parameters, its adapters apart."""
        return adapters.join(self.frozen.generator, self.state.generator)

    def run(self, stop: StopRequest) -> bool:
        """Runs what is left; returns False when a stop request, of any process, ended it early.

        Raises what `steps` raises.
        """
        try:
            for _ in self.steps(stop):
                pass
            self.saver.checkpoints.wait()  # what fails from here on ends the process at once
        except Exception as error:  # as this one does
            self.saver.checkpoints.settle(error)
            self.tracker.leave("failed")
            raise
        return not self.deadline.stopping

    def steps(self, stop: StopRequest) -> Iterator[dict[str, Any]]:
        """Takes the steps that are left, and yields the metrics of each, with 'step' and 'stage'.

        Ends early where a stop request, of any process, asks for it. Raises NumericsError after
        `max_skips` consecutive skipped steps, or where a stage ended in skipped steps, and
        CollapseError when an alarm stops the run.
        """
        stops.refuse_collapsed(self.health_settings, self.health_state, self.saver.checkpoints)
        if self.step == 0:
            self._evaluate(heldout.FIRST, stop)
        else:
            self._catch_up(stop)
            if self.deadline.stopping:  # the evaluation was cut short again, and nothing is new
                return
        first = self.step
        for span in self.spans:
            if self.step >= span.end:
                self._refuse_skipped_end(span)
                continue
            if self.step == span.start:
                self.state = state.begin_stage(
                    self.state, span.program, self.mesh, self.load_discriminator
                )
            if not self._sample_answers(span, stop):
                return
            while self.step < span.end:
                paused = self._paused(span)
                self._arm_watchdog(span, compiles=self.step == first or paused is not None)
                self.state, metrics = self.iteration.run(
                    span, self.step, self.state, self.frozen, paused
                )
                self.step += 1
                stop.ready = True
                self._after_step(span, metrics, stop)
                yield {"step": self.step, "stage": span.stage, **metrics}
                if self.deadline.stopping:
                    return
            self._refuse_skipped_end(span)

    def compare(self) -> None:
        """Shows the evaluations at the start and at the end of each stage next to each other."""
        self.evaluations.compare([heldout.FIRST, *(f"after {span.stage}" for span in self.spans)])

    def close(self) -> None:
        """Waits for the last save and closes the files, each whatever the others raise."""
        with contextlib.ExitStack() as last_first:
            outcome = "finished" if self.step >= self.total_steps else "stopped"
            last_first.callback(self.tracker.close, outcome)
            last_first.callback(self.saver.checkpoints.close)
            last_first.callback(self.iteration.close)

    def _paused(self, span: Span) -> health.Side | None:
        """Returns the network that an alarm pauses in this step; None where nothing would train."""
        side = health.paused_side(self.health_settings, self.health_state, span.stage)
        if span.is_discriminator_only(self.step) or not span.program.train_generator:
            return None
        return None if side == "generator" and not span.program.train_discriminator else side

    def _refuse_skipped_end(self, span: Span) -> None:
        if self.step == span.end:  # else the state is another stage's
            run = self.saver.checkpoints.directory.parent
            stops.refuse_skipped_end(span, self.state, span is self.spans[-1], run)

    def _sample_answers(self, span: Span, stop: StopRequest) -> bool:
        """Has the student answer what the stage learns from; returns False if it was stopped."""

        def keep_going() -> bool:
            stop.ready = True  # the answers so far are kept
            return self._keep_going(stop)

        try:
            self.iteration.learnt = self.snapshots.prepare(
                span,
                self.step,
                self.state,
                self.frozen,
                keep_going,
                self.tracker.notice,
            )
        except Interrupted:
            return False
        return True

    def _keep_going(self, stop: StopRequest) -> bool:
        self.deadline.poll(stop)
        return not self.deadline.stopping

    def _arm_watchdog(self, span: Span, compiles: bool) -> None:
        changes = (span.start, span.start + span.discriminator_only_steps)
        compiles = compiles or self.step in changes
        minutes = self.limits.other_minutes if compiles else self.limits.step_minutes
        exits.watchdog(60 * minutes)

    def _evaluate(self, label: str, stop: StopRequest) -> heldout.HeldoutResult | None:
        keep_going = partial(self._keep_going, stop)
        return self.evaluations.make(label, self.step, self.generator, keep_going)

    def _after_step(self, span: Span, metrics: dict[str, float], stop: StopRequest) -> None:
        """Evaluates, logs and saves what is due after a step. Raises what ends the run."""
        exits.watchdog(60 * self.limits.other_minutes)
        broken_leaves = stops.take_broken(metrics, self.state)
        self.deadline.poll(stop, metrics["seconds/step"])
        label = span.evaluation_due(self.step, self.evaluate_every)
        # When stopping, save first: the evaluation that is due is made on resume (`_catch_up`).
        result = self._evaluate(label, stop) if label and not self.deadline.stopping else None
        evaluated = time.perf_counter()
        metrics |= result.metrics if result else {}
        self.health_state, events = health.observe(
            self.health_settings, self.health_state, span.stage, metrics
        )
        metrics["health/alarms"] = float(len(health.alarms(self.health_state)))
        self.tracker.log(self.step, span.stage, metrics)
        for event in events:
            self.tracker.notice(f"step {self.step}: {event.sentence}")
        ending = [event for event in events if event.action == "stop"]
        too_many_skips = metrics["skips/consecutive"] >= self.max_skips
        checkpoints = self.saver.checkpoints
        checkpoints.check()
        improves = self.saver.improves(result, self.step, span.stage)
        unsaved = ""
        if self._save_due(span) or improves or too_many_skips or ending:
            unsaved = self._save(span, result)
        if improves and not unsaved:
            self._name_best(result)
        if too_many_skips or unsaved or ending:
            checkpoints.wait()  # the error says which there are
        if too_many_skips:
            rows = span.batches[self.step - 1 - span.start].indices
            ids = [self.row_ids[index] for index in rows]
            raise stops.numerics(self.step, metrics, broken_leaves, ids, checkpoints, unsaved)
        if unsaved:
            raise stops.not_saved(self.step, unsaved, checkpoints)
        for event in ending:
            raise stops.collapse(self.step, event, checkpoints)
        self.iteration.between = time.perf_counter() - evaluated

    def _save(self, span: Span, result: heldout.HeldoutResult | None) -> str:
        """Saves the run, unless it has non-finite numbers; returns where these are, else ''."""
        broken = stops.broken_state(self.state)
        if not broken:
            self.saver.save(
                self.step,
                span.stage,
                self.state,
                self.health_state,
                self.iteration.shapes,
                result,
                self.iteration.arrays(),
                self.total_steps,
            )
            self.deadline.saved()
        return broken

    def _save_due(self, span: Span) -> bool:
        due = self.step % self.saver.options.every == 0 or self.step == span.end
        return due or self.deadline.stopping or self.deadline.save_is_late

    def _catch_up(self, stop: StopRequest) -> None:
        """Makes the evaluation that a stop request put off, in all places that show it."""
        span = next(span for span in self.spans if self.step <= span.end)
        label = span.evaluation_due(self.step, self.evaluate_every)
        if label and (result := self._evaluate(label, stop)):
            self.tracker.amend(self.step, result.metrics)
            self.saver.rescore(self.step, span.stage, result)
            self.saver.report(self.step, self.total_steps, span.stage)

    def _name_best(self, result: heldout.HeldoutResult | None) -> None:
        assert result is not None
        options, score = self.saver.options, self.saver.score(result)
        self.tracker.news(
            f"best checkpoint so far: step {self.step}, {options.best_metric} {score:.4f}, answers "
            f"{result.metrics['evaluation/length_ratio']:.2f} times the teacher's length"
        )

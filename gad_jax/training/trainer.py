"""One run: the stages and their steps, evaluations, checkpoints. `train.py` sets it up.

A step is: draw prompts, sample responses, pack, one compiled update. Everything it depends on is in
the training state or follows from (seed, step), so a run that resumes goes on as if never stopped.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gad_jax.base import exits, files
from gad_jax.base.errors import UserError
from gad_jax.core import layout, packing, steps
from gad_jax.core.program import Program
from gad_jax.data import scripts
from gad_jax.data.chat import Chat
from gad_jax.data.pipeline import Prepared, PromptBatch
from gad_jax.distributed import devices, processes
from gad_jax.distributed.mesh import data_shards
from gad_jax.metrics import heldout
from gad_jax.metrics.responses import repetition, response_metrics
from gad_jax.rollout import engine, prefill
from gad_jax.rollout.ring import Weights
from gad_jax.rollout.sampling import Sampler
from gad_jax.settings.config import Config
from gad_jax.settings.sections import Stage
from gad_jax.training import deadline, health, preflight, state, stops
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.profiler import Profiler
from gad_jax.training.stages import Span, spans
from gad_jax.training.tracker import Tracker
from gad_jax.types import PackedRows, Rollout, TrainState


class Trainer:
    """The run's parts, and the loop over them. Create and use it under `jax.set_mesh(mesh)`."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        chat: Chat,
        data: Prepared,
        held_out: Prepared | None,
        checkpoints: Checkpoints,
    ):
        self.config, self.mesh, self.chat = config, mesh, chat
        self.data, self.held_out, self.checkpoints = data, held_out, checkpoints
        self.spans = spans(config, data)
        self.networks = state.network_configs(config)
        preflight.check(config, self.networks, chat, mesh, checkpoints)
        self.sampling = engine.RolloutProgram(
            samples=config.rollout.samples,
            max_new_tokens=config.rollout.max_new_tokens,
            end_tokens=chat.end_tokens,
            pad_token=chat.pad_token,
            sampler=Sampler(config.rollout.temperature, config.rollout.top_k, config.rollout.top_p),
            slots=config.rollout.slots,
            longest=config.longest,
        )
        self.compiles = devices.CompileCounter()
        self.shapes: set[layout.Shape] = set()  # of the rows so far
        self.profiler = Profiler(config.profile.window, config.run_dir, self.networks)
        self.health: health.State = {}
        self.scripts = scripts.token_scripts(self.chat.tokenizer, self.networks[0].vocabulary)
        self.broken_leaves: dict[str, str] = {}
        self.state: TrainState = self._restore() or state.load(config, self.networks[0], mesh)
        self.step = int(self.state.step)
        self.total_steps = self.spans[-1].end
        self.stop_by = deadline.stop_time(
            config.checkpoint.must_save_by, config.checkpoint.margin_minutes
        )
        self.stopping = self.save_is_late = False
        self.saved_at = time.monotonic()
        self.tracker = Tracker(config.run_dir, enabled=processes.is_first())
        self.tracker.start(self.step, self.total_steps)

    def run(self, stop: exits.StopRequest) -> bool:
        """Runs what is left; returns False when a stop request, of any process, ended it early.

        Raises NumericsError after `optimizer.max_skips` skipped steps in a row, and CollapseError
        when an alarm stops the run.
        """
        stops.refuse_collapsed(self.config.health, self.health, self.checkpoints)
        if self.step == 0:
            self.evaluate("before", stop)
        else:
            self._catch_up(stop)
        first = self.step
        for span in self.spans:
            if self.step >= span.end:
                continue
            program = state.make_program(self.config, span.stage, *self.networks)
            if self.step == span.start:
                self.state = state.begin_stage(
                    self.state, self.config, span.stage, program, self.mesh
                )
            while self.step < span.end:
                alone = getattr(self.config, span.stage).discriminator_only_steps
                compiles = self.step in (first, span.start, span.start + alone)
                compiles |= self._sits_out(span) is not None
                limits = self.config.limits
                exits.watchdog(60 * (limits.other_minutes if compiles else limits.step_minutes))
                metrics = self._train_step(span, program)
                stop.ready = True
                self._after_step(span, metrics, stop)
                if self.stopping:
                    return False
        return True

    def evaluate(self, label: str, stop: exits.StopRequest) -> heldout.Result | None:
        """Returns the student's held-out evaluation at this step; a stored one is read again.

        Returns None without held-out rows, and when a stop request cut it short.
        """
        if self.held_out is None:
            return None
        path = self._evaluation_path(label)
        if stored := processes.from_first(lambda: path.read_text("utf-8") if path.exists() else ""):
            return heldout.parse(stored)
        options = self.config.evaluation
        prompts = min(options.prompts or len(self.held_out), len(self.held_out))
        with self.tracker.busy(f"evaluating {label}: {prompts} held-out prompts"):
            result = heldout.evaluate(
                self.networks[0],
                self.state.generator,
                self.held_out,
                self.chat,
                self.mesh,
                label=label,
                step=self.step,
                prompts=prompts,
                max_new_tokens=options.max_new_tokens or self.config.rollout.max_new_tokens,
                batch_prompts=options.batch_prompts,
                going_on=lambda: not self._must_stop(stop),
            )
        if result is not None and processes.is_first():
            # The file last: it says that the evaluation is done.
            self.tracker.evaluation(result, options.examples)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(path, result.to_json())
        return result

    def compare(self) -> None:
        """Shows the evaluations at the start and at the end of each stage side by side."""
        if not processes.is_first():
            return
        labels = ["before", *(f"after {span.stage}" for span in self.spans)]
        paths = [path for label in labels if (path := self._evaluation_path(label)).exists()]
        results = [heldout.read(path) for path in paths]
        self.tracker.comparison(results, self.config.evaluation.examples)

    def _evaluation_path(self, label: str) -> Path:
        return Path(self.config.run_dir) / "evaluations" / f"{label.replace(' ', '-')}.json"

    def _train_step(self, span: Span, program: Program) -> dict[str, float]:
        """Runs one step and returns its metrics."""
        self.profiler.begin(self.step + 1)
        started = time.perf_counter()
        compiled = self.compiles.count, self.compiles.seconds
        batch = span.batches[self.step - span.start]
        options: Stage = getattr(self.config, span.stage)
        resting = self._sits_out(span)
        if resting == "discriminator":
            program = dataclasses.replace(program, train_discriminator=False)
        metrics: dict[str, float] = {}
        if options.train_discriminator or span.stage == "gad":
            with jax.profiler.TraceAnnotation("rollout"):
                weights = prefill.prepare(self.networks[0], self.state.generator)
                jax.block_until_ready(weights)
                resharded = time.perf_counter()
                metrics["reshard/gib"] = devices.device_bytes(weights) / 2**30
                metrics["seconds/reshard"] = resharded - started
                rollout, segments = self._sample(batch, weights)
                del weights
            metrics |= self._rollout_metrics(rollout, batch, time.perf_counter() - started)
            shards = data_shards(self.mesh)
            metrics["rollout/occupancy"] = engine.occupancy(rollout, segments, shards)
        else:
            rollout = None
        packing_started = time.perf_counter()
        update, rows = self._pack(span, program, batch, rollout)
        placed = [packing.place(piece, self.mesh) for piece in rows]
        update_started = time.perf_counter()
        self.state, device_metrics = update(program, self.state, *placed)
        metrics |= {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        self.broken_leaves = stops.take_broken_leaves(metrics, self.state)
        metrics |= {f"health/{resting}_sits_out": 1.0} if resting else {}
        ended = time.perf_counter()
        self.step += 1
        positions = sum(piece.tokens.size for piece in rows)
        metrics |= {
            "seconds/pack": update_started - packing_started,
            "seconds/update": ended - update_started,
            "seconds/step": ended - started,
            "tokens_per_second/update": positions / (ended - update_started),
            "padding": sum(piece.tokens.size * packing.padding_share(piece) for piece in rows)
            / positions,
            "seconds/compile": self.compiles.seconds - compiled[1],
            "compiles": float(self.compiles.count - compiled[0]),
        }
        peak = devices.peak_memory()
        metrics |= {"memory/peak_gib": peak / 2**30} if peak else {}
        self.profiler.end(self.step, update.__name__, metrics)
        return metrics

    def _sample(
        self, batch: PromptBatch, weights: Weights
    ) -> tuple[Rollout, tuple[engine.DecodeCall, ...]]:
        return engine.sample_responses(
            self.networks[0],
            self.state.generator,
            batch.prompts,
            batch.indices,
            jax.random.fold_in(self.state.key, self.step),
            self.sampling,
            self.mesh,
            weights,
        )

    def _pack(
        self, span: Span, program: Program, batch: PromptBatch, rollout: Rollout | None
    ) -> tuple[Callable[..., Any], list[PackedRows]]:
        """Returns the compiled step to run and the packed rows that it takes, on the host."""
        options: Stage = getattr(self.config, span.stage)
        teacher = [[response] for response in batch.responses]
        if rollout is None:
            return steps.seqkd_step, [self._rows(batch, teacher)]
        samples = _ragged(rollout.tokens, rollout.lengths)
        shown = [[self._as_teacher_would_end(sample) for sample in group] for group in samples]
        pairs = self._rows(batch, [t + s for t, s in zip(teacher, shown, strict=True)])
        alone = self._discriminator_is_alone(span) or self._sits_out(span) == "generator"
        if alone or not options.train_generator:
            return steps.discriminator_step, [pairs]
        if span.stage == "warmup":
            # No more at once than the discriminator's micro-batch has, which is there anyway.
            count = layout.fewest_micro_batches(
                batch.prompts, teacher, pairs.tokens.shape[0], pairs.tokens[0].size
            )
            return steps.warmup_step, [pairs, self._rows(batch, teacher, micro_batches=count)]
        logprobs = _ragged(rollout.logprobs, rollout.lengths)
        return steps.gad_step, [pairs, self._rows(batch, samples, logprobs)]

    def _discriminator_is_alone(self, span: Span) -> bool:
        """Returns whether the step is one of the stage's first that train D alone."""
        options: Stage = getattr(self.config, span.stage)
        first_steps = self.step - span.start < options.discriminator_only_steps
        return first_steps and options.train_discriminator

    def _sits_out(self, span: Span) -> health.Side | None:
        """Returns the network that an alarm keeps out of this step; the other one has to play."""
        side = health.paused_side(self.config.health, self.health)
        options: Stage = getattr(self.config, span.stage)
        if self._discriminator_is_alone(span) or not options.train_generator:
            return None
        return None if side == "generator" and not options.train_discriminator else side

    def _rows(
        self,
        batch: PromptBatch,
        responses: list[list[Any]],
        logprobs: Any = None,
        micro_batches: int = 0,
    ) -> PackedRows:
        options = self.config.batch
        configured = options.prompts // (options.micro_batch_prompts or options.prompts)
        rows = packing.pack(
            batch.prompts,
            responses,
            logprobs,
            row_tokens=self.config.row_tokens,
            micro_batches=micro_batches or configured,
            shards=data_shards(self.mesh),
            known=self.shapes,
        )
        count, height, length = rows.tokens.shape
        self.shapes.add((count, height, length))
        self.profiler.saw(rows)
        return rows

    def _as_teacher_would_end(self, sample: np.ndarray) -> np.ndarray:
        """Returns a sample whose end token is the teacher's: which of a model's several end tokens
        was drawn must not tell the discriminator who wrote the text."""
        if sample[-1] not in self.chat.end_tokens:
            return sample
        return np.append(sample[:-1], np.int32(self.chat.end_token))

    def _rollout_metrics(
        self, rollout: Rollout, batch: PromptBatch, seconds: float
    ) -> dict[str, float]:
        lengths = np.asarray(rollout.lengths)
        metrics = response_metrics(
            lengths,
            ~np.asarray(rollout.finished),
            [len(response) for response in batch.responses],
            [response[-1] not in self.chat.end_tokens for response in batch.responses],
        )
        samples = [sample for group in _ragged(rollout.tokens, lengths) for sample in group]
        metrics["response/repetition"] = repetition(samples)
        metrics["response/teacher_repetition"] = repetition(batch.responses)
        metrics["response/script_drift"] = scripts.drift(self.scripts, samples, batch.responses)
        return metrics | {
            "seconds/rollout": seconds,
            "tokens_per_second/rollout": float(lengths.sum()) / seconds,
        }

    def _after_step(self, span: Span, metrics: dict[str, float], stop: exits.StopRequest) -> None:
        """Evaluates, saves and logs what is due after a step."""
        exits.watchdog(60 * self.config.limits.other_minutes)
        label = span.evaluation_due(self.step, self.config.evaluation.every)
        result = None
        # Saving comes first; an evaluation that is due then is made when the run goes on.
        if not self._must_stop(stop, metrics["seconds/step"]) and label:
            result = self.evaluate(label, stop)
        if result is not None:
            metrics = metrics | result.metrics
        self.health, events = health.observe(self.config.health, self.health, span.stage, metrics)
        metrics = metrics | {"health/alarms": float(len(health.alarms(self.health)))}
        self.tracker.log(self.step, span.stage, metrics)
        for event in events:
            self.tracker.notice(f"step {self.step}: {event.sentence}")
        ending = [event for event in events if event.action == "stop"]
        in_a_row = metrics["skips/in_a_row"]
        too_many = in_a_row >= self.config.optimizer.max_skips
        due = self.step % self.config.checkpoint.every == 0
        due = due or self.step == span.end or self.stopping or self.save_is_late
        if due or too_many or ending:
            self._save(span, result)
        if too_many:
            rows = span.batches[self.step - 1 - span.start].indices
            ids = [self.data.rows[index].id for index in rows]
            raise stops.numerics(self.step, metrics, self.broken_leaves, ids, self.checkpoints)
        for event in ending:
            raise stops.collapse(self.step, event, self.checkpoints)

    def _catch_up(self, stop: exits.StopRequest) -> None:
        """Makes up for the evaluation that a stop request put off, in all places that show it."""
        span = next(span for span in self.spans if self.step <= span.end)
        label = span.evaluation_due(self.step, self.config.evaluation.every)
        if label and (result := self.evaluate(label, stop)):
            self.tracker.amend(self.step, result.metrics)
            self.checkpoints.rescore(self.step, self._score(result))

    def _must_stop(self, stop: exits.StopRequest, next_step_seconds: float = 0.0) -> bool:
        """Returns whether the run ends here: a process was asked to, or time is up. All agree, on
        that and on whether the last save is too long ago."""
        minutes = self.config.checkpoint.every_minutes
        late = minutes > 0 and time.monotonic() - self.saved_at > 60 * minutes
        asked = stop.requested or time.time() + next_step_seconds > self.stop_by
        asked, self.save_is_late = processes.any_of(asked, late)
        self.stopping = self.stopping or asked
        return self.stopping

    def _score(self, result: heldout.Result | None) -> float | None:
        """Returns what ranks a checkpoint, if its answers are of acceptable length."""
        if result is None:
            return None
        options = self.config.checkpoint
        band = options.best_min_length_ratio, options.best_max_length_ratio
        return result.score(options.best_metric, *band)

    def _save(self, span: Span, result: heldout.Result | None) -> None:
        meta = {
            "step": self.step,
            "stage": span.stage,
            "data": self.data.fingerprint,
            "health": self.health,
            "shapes": sorted(self.shapes),  # a run that goes on packs as this one would have
        }
        self.checkpoints.save(self.step, self.state, meta, self._score(result))
        self.saved_at = time.monotonic()

    def _restore(self) -> TrainState | None:
        if self.checkpoints.latest() is None:
            return None

        def expected(meta: dict[str, Any]) -> TrainState:
            if meta["data"] != self.data.fingerprint:
                raise UserError(
                    f"{self.config.run_dir} was trained on other rows or another tokenizer "
                    f"(fingerprint {meta['data'][:12]}, now {self.data.fingerprint[:12]}); give "
                    "the data it had, or choose another --run_dir"
                )
            self.shapes = {tuple(shape) for shape in meta.get("shapes", ())}
            program = state.make_program(self.config, meta["stage"], *self.networks)
            return state.abstract(self.config, meta["stage"], program, self.mesh)

        restored = self.checkpoints.restore(expected)
        self.health = restored.meta.get("health", {})
        return restored.state


def _ragged(values: Any, lengths: Any) -> list[list[np.ndarray]]:
    """Returns each response's values without what lies after its end: [B N R] and [B N] → lists."""
    return [
        [row[:length] for row, length in zip(group, counts, strict=True)]
        for group, counts in zip(values, lengths, strict=True)
    ]

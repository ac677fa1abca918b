"""One run: the stages and their steps, evaluations, checkpoints. `train.py` sets it up.

A step is: draw prompts, sample responses, pack, one compiled update. Everything it depends on is in
the training state or follows from (seed, step), so a run that resumes goes on as if never stopped.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gad_jax import guard, sharding, state, steps
from gad_jax.checkpoint import Checkpoints
from gad_jax.config import STAGES, Config, Stage
from gad_jax.data import packing, pipeline
from gad_jax.data.chat import Chat
from gad_jax.data.pipeline import Prepared, PromptBatch, PromptBatches
from gad_jax.errors import NumericsError, UserError
from gad_jax.evaluation import heldout
from gad_jax.metrics import Tracker, response_metrics
from gad_jax.profiling import Profiler
from gad_jax.rollout import engine
from gad_jax.rollout.sampling import Sampler
from gad_jax.types import Rollout, Rows, TrainState


@dataclasses.dataclass(frozen=True)
class Span:
    """The steps [start, end) of the run that belong to a stage, and the stage's batches."""

    stage: str
    start: int
    end: int
    batches: PromptBatches


def plan(config: Config, data: Prepared) -> tuple[Span, ...]:
    """Returns the spans of the run's stages; each shuffles the rows with a seed of its own."""
    spans: list[Span] = []
    start = 0
    for stage in config.stages:
        options: Stage = getattr(config, stage)
        seeds = np.random.SeedSequence([config.seed, STAGES.index(stage)])
        batches = pipeline.batches(
            data, prompts_per_step=config.batch.prompts, seed=int(seeds.generate_state(1)[0])
        )
        length = options.steps or math.ceil(options.epochs * batches.steps_per_epoch)
        spans.append(Span(stage, start, start + length, batches))
        start += length
    return tuple(spans)


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
        self.spans = plan(config, data)
        self.networks = state.network_configs(config)
        self._check_sizes()
        self.compiles = sharding.CompileCounter()
        self.sampling = engine.Settings(
            samples=config.rollout.samples,
            max_new_tokens=config.rollout.max_new_tokens,
            end_tokens=chat.end_tokens,
            pad_token=chat.pad_token,
            sampler=Sampler(config.rollout.temperature, config.rollout.top_k, config.rollout.top_p),
        )
        self.shapes: set[packing.Shape] = set()  # of the rows so far
        self.profiler = Profiler(config.profile.window, config.run_dir, self.networks)
        self.state: TrainState = self._restore() or state.load(config, self.networks[0], mesh)
        self.step = int(self.state.step)
        self.total_steps = self.spans[-1].end
        self.tracker = Tracker(config.run_dir)
        self.tracker.start(self.step, self.total_steps)

    def run(self, stop: guard.StopRequest) -> bool:
        """Runs what is left; returns False when a stop request ended it early.

        Raises NumericsError after `optimizer.max_skips` skipped steps in a row.
        """
        if self.step == 0:
            self.evaluate("before")
        for span in self.spans:
            if self.step >= span.end:
                if self.step == span.end:  # stopped between the stage's last step and this
                    self.evaluate(f"after {span.stage}")
                continue
            program = state.make_program(self.config, span.stage, *self.networks)
            if self.step == span.start:
                self.state = state.begin_stage(
                    self.state, self.config, span.stage, program, self.mesh
                )
            while self.step < span.end:
                metrics = self._train_step(span, program)
                stop.ready = True
                self._after_step(span, metrics, stop)
                if stop.requested:
                    return self.step == self.total_steps
        return True

    def evaluate(self, label: str) -> heldout.Result | None:
        """Returns the student's held-out evaluation at this step; a stored one is read again."""
        if self.held_out is None:
            return None
        path = self._evaluation_path(label)
        if path.exists():
            return heldout.read(path)
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
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        guard.write_atomic(path, result.to_json())
        self.tracker.evaluation(result, options.examples)
        return result

    def compare(self) -> None:
        """Shows the evaluations at the start and at the end of each stage side by side."""
        labels = ["before", *(f"after {span.stage}" for span in self.spans)]
        paths = [path for label in labels if (path := self._evaluation_path(label)).exists()]
        results = [heldout.read(path) for path in paths]
        self.tracker.comparison(results, self.config.evaluation.examples)

    def _evaluation_path(self, label: str) -> Path:
        return Path(self.config.run_dir) / "evaluations" / f"{label.replace(' ', '-')}.json"

    def _check_sizes(self) -> None:
        """Raises UserError where the settings, the tokenizer and the networks do not fit."""
        generator, config = self.networks[0], self.config
        if self.chat.vocab_size > generator.vocabulary:
            raise UserError(
                f"{config.student.path}: the tokenizer knows {self.chat.vocab_size} tokens and the "
                f"network {generator.vocabulary}; use the tokenizer that belongs to the weights"
            )
        longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
        for network in self.networks:
            if longest > network.max_positions:
                raise UserError(
                    f"data.max_prompt_tokens + rollout.max_new_tokens = {longest} is more than the "
                    f"{network.max_positions} positions of {config.student.path}; lower one of them"
                )

    def _train_step(self, span: Span, program: steps.Program) -> dict[str, float]:
        """Runs one step and returns its metrics."""
        self.profiler.begin(self.step + 1)
        started = time.perf_counter()
        compiled = self.compiles.count, self.compiles.seconds
        batch = span.batches[self.step - span.start]
        options: Stage = getattr(self.config, span.stage)
        metrics: dict[str, float] = {}
        if options.train_discriminator or span.stage == "gad":
            with jax.profiler.TraceAnnotation("rollout"):
                rollout = self._sample(batch)
            metrics |= self._rollout_metrics(rollout, batch, time.perf_counter() - started)
        else:
            rollout = None
        packing_started = time.perf_counter()
        update, rows = self._pack(span, program, batch, rollout)
        update_started = time.perf_counter()
        self.state, device_metrics = update(program, self.state, *rows)
        metrics |= {name: float(value) for name, value in jax.device_get(device_metrics).items()}
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
        self.profiler.end(self.step, update.__name__, metrics)
        return metrics

    def _sample(self, batch: PromptBatch) -> Rollout:
        return engine.generate(
            self.networks[0],
            self.state.generator,
            batch.prompts,
            batch.indices,
            jax.random.fold_in(self.state.key, self.step),
            self.sampling,
            self.mesh,
        )

    def _pack(
        self, span: Span, program: steps.Program, batch: PromptBatch, rollout: Rollout | None
    ) -> tuple[Callable[..., Any], list[Rows]]:
        """Returns the compiled step to run and the packed rows that it takes."""
        options: Stage = getattr(self.config, span.stage)
        teacher = [[response] for response in batch.responses]
        if rollout is None:
            return steps.seqkd_step, [self._rows(batch, teacher)]
        samples = _ragged(rollout.tokens, rollout.lengths)
        shown = [[self._as_teacher_would_end(sample) for sample in group] for group in samples]
        pairs = self._rows(batch, [t + s for t, s in zip(teacher, shown, strict=True)])
        first_steps = self.step - span.start < options.discriminator_only_steps
        if (first_steps and options.train_discriminator) or not options.train_generator:
            return steps.discriminator_step, [pairs]
        if span.stage == "warmup":
            # No more at once than the discriminator's micro-batch has, which is there anyway.
            count = packing.fewest_micro_batches(
                batch.prompts, teacher, pairs.tokens.shape[0], pairs.tokens[0].size
            )
            return steps.warmup_step, [pairs, self._rows(batch, teacher, micro_batches=count)]
        logprobs = _ragged(rollout.logprobs, rollout.lengths)
        return steps.gad_step, [pairs, self._rows(batch, samples, logprobs)]

    def _rows(
        self,
        batch: PromptBatch,
        responses: list[list[Any]],
        logprobs: Any = None,
        micro_batches: int = 0,
    ) -> Rows:
        options = self.config.batch
        configured = options.prompts // (options.micro_batch_prompts or options.prompts)
        rows = packing.pack(
            batch.prompts,
            responses,
            logprobs,
            row_tokens=self.config.row_tokens,
            micro_batches=micro_batches or configured,
            shards=sharding.data_shards(self.mesh),
            known=self.shapes,
        )
        count, height, length = rows.tokens.shape
        self.shapes.add((count, height, length))
        self.profiler.saw(rows)
        return packing.place(rows, self.mesh)

    def _as_teacher_would_end(self, sample: np.ndarray) -> np.ndarray:
        """Returns a sample whose end token is the teacher's: which of a model's several end tokens
        was drawn must not tell the discriminator who wrote the text."""
        if sample[-1] not in self.chat.end_tokens:
            return sample
        return np.append(sample[:-1], np.int32(self.chat.end_token))

    def _rollout_metrics(
        self, rollout: Rollout, batch: PromptBatch, seconds: float
    ) -> dict[str, float]:
        teacher = np.asarray([len(response) for response in batch.responses])
        lengths = np.asarray(rollout.lengths)
        metrics = response_metrics(lengths, ~np.asarray(rollout.finished), teacher)
        return metrics | {
            "seconds/rollout": seconds,
            "tokens_per_second/rollout": float(lengths.sum()) / seconds,
        }

    def _after_step(self, span: Span, metrics: dict[str, float], stop: guard.StopRequest) -> None:
        """Evaluates, saves and logs what is due after a step."""
        ends_stage = self.step == span.end
        every = self.config.evaluation.every
        result = None
        if stop.requested:
            pass  # saving comes first; the end of a stage is evaluated when the run goes on
        elif ends_stage:
            result = self.evaluate(f"after {span.stage}")
        elif every and self.step % every == 0:
            result = self.evaluate(f"step {self.step}")
        if result is not None:
            metrics = metrics | result.metrics
        self.tracker.log(self.step, span.stage, metrics)
        in_a_row = metrics["skips/in_a_row"]
        too_many = in_a_row >= self.config.optimizer.max_skips
        due = self.step % self.config.checkpoint.every == 0
        if due or ends_stage or stop.requested or too_many:
            self._save(span, result)
        if too_many:
            broken = [name for name, value in metrics.items() if not math.isfinite(value)]
            raise NumericsError(
                f"step {self.step}: {int(in_a_row)} steps in a row were skipped because "
                f"{', '.join(broken) or 'a gradient'} was not finite; the weights from before "
                "the first of them are saved; lower the learning rate of the network at fault"
            )

    def _save(self, span: Span, result: heldout.Result | None) -> None:
        score = None
        if result is not None:
            ratio = result.metrics["evaluation/length_ratio"]
            if ratio <= self.config.checkpoint.best_max_length_ratio:
                score = result.metrics["evaluation/rouge_l"]
        meta = {
            "step": self.step,
            "stage": span.stage,
            "data": self.data.fingerprint,
            "shapes": sorted(self.shapes),  # a run that goes on packs as this one would have
        }
        self.checkpoints.save(self.step, self.state, meta, score)

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

        return self.checkpoints.restore(expected).state


def _ragged(values: Any, lengths: Any) -> list[list[np.ndarray]]:
    """Returns each response's values without what lies after its end: [B N R] and [B N] → lists."""
    return [
        [row[:length] for row, length in zip(group, counts, strict=True)]
        for group, counts in zip(values, lengths, strict=True)
    ]

"""One iteration of a run: sample → pack → one compiled step.

What an iteration depends on is in the training state or follows from (seed, step), so a resumed run
continues as if it had never stopped.
"""

import dataclasses
import time
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from gad_jax.base import host_memory
from gad_jax.core import preference, steps
from gad_jax.core.program import Program
from gad_jax.data import scripts
from gad_jax.data.chat import Chat
from gad_jax.data.epochs import PromptBatch
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import data_shards
from gad_jax.metrics.responses import repetition, response_metrics
from gad_jax.models import adapters
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import engine, prefill
from gad_jax.rollout.engine import DecodeCall, RolloutProgram
from gad_jax.training import randomness
from gad_jax.training.custom_step import CustomStep
from gad_jax.training.health import Side
from gad_jax.training.replay import Answers, Drawn, Pool
from gad_jax.training.rewards.paying import Rewards
from gad_jax.training.stages import Span
from gad_jax.training.step_rows import Packer, StepRows, ragged
from gad_jax.types import Frozen, Rollout, TrainState


@runtime_checkable  # for the checks of the tests
class Learnt(Protocol):
    """Answers to the rows of the data that a stage learns from (`snapshots.py`)."""

    def of(self, rows: np.ndarray, step: int) -> Answers:
        """Returns the tokens of the answers to each row in the step after `step`."""
        ...

    def metrics(self, rows: np.ndarray) -> dict[str, float]:
        """Returns what is known of the answers to some rows."""
        ...


class _Sampling(NamedTuple):
    """A rollout, and what it took: seconds in all and of making the decode copy, and its size."""

    rollout: Rollout
    calls: tuple[DecodeCall, ...]
    seconds: float
    resharding: float
    weights_gib: float


class Iteration:
    """What all iterations of a run share; `run` is one of them.

    `pool` has the older answers of the student, where the discriminator sees some again, and
    `learnt` the answers that a stage learns from next to the teacher's text, or in its place.
    """

    def __init__(
        self,
        generator: DecoderConfig,
        chat: Chat,
        mesh: Mesh,
        rollout: RolloutProgram,
        packer: Packer,
        pool: Pool | None = None,
        rewards: Rewards | None = None,
        custom_step: CustomStep | None = None,
    ) -> None:
        self.generator, self.chat, self.mesh, self.rollout = generator, chat, mesh, rollout
        self.packer, self.pool, self.rewards = packer, pool, rewards
        self.custom_step = custom_step
        self.profiler = packer.profiler
        self.learnt: Learnt | None = None
        self.between = 0.0  # seconds of logging and saving since the last iteration
        self.compiles = devices.CompileCounter()
        self.scripts = scripts.token_scripts(chat.tokenizer, generator.vocabulary)

    def close(self) -> None:
        """Ends a trace that is being taken, and closes what the rewards keep open."""
        self.profiler.close()
        if self.rewards is not None:
            self.rewards.close()

    def run(
        self, span: Span, step: int, state: TrainState, frozen: Frozen, paused: Side | None
    ) -> tuple[TrainState, dict[str, float]]:
        """Returns the state after the next step and its metrics; `step` counts those done.

        `paused` names the network that an alarm keeps from training in this step.
        """
        self.profiler.begin(step + 1)
        started = time.perf_counter()
        compiled = self.compiles.count, self.compiles.seconds
        batch = span.batches[step - span.start]
        sampling, rollout = None, None
        if span.samples_student:
            sampling = self._sample(batch, state, frozen, step)
            rollout = sampling.rollout
            if devices.platform() == "cpu":  # the layers of the decode copy, too small to be mapped
                host_memory.give_back()
        sampled = time.perf_counter()
        program = _without(span.program, paused)
        rows = StepRows(
            self.packer, self.chat, batch, rollout, self._replayed(program, batch, step)
        )
        # In the first steps of a stage, or while an alarm pauses G.
        generator_waits = span.is_discriminator_only(step) or paused == "generator"
        state, found = self._update(span, program, generator_waits, step, rows, state, frozen)
        # The devices compute until the metrics are there: what the host does meanwhile is free.
        host = self.between + time.perf_counter() - sampled
        metrics = {} if sampling is None else self._rollout_metrics(sampling, batch)
        metrics |= self._remember(rows, step)

        metrics |= {name: float(value) for name, value in jax.device_get(found).items()}
        metrics |= {f"health/{paused}_paused": 1.0} if paused else {}
        ended = time.perf_counter()
        metrics |= rows.metrics(ended - sampled - metrics.get("seconds/reward", 0.0)) | {
            "seconds/step": ended - started,
            "seconds/compile": self.compiles.seconds - compiled[1],
            "compiles": float(self.compiles.count - compiled[0]),
        }
        if not metrics["compiles"]:  # else tracing would count as waiting
            metrics["host_share"] = host / (self.between + ended - started)
        peak = devices.peak_memory()
        metrics |= {"memory/peak_gib": peak / 2**30} if peak else {}
        self.profiler.end(step + 1, metrics)
        return state, metrics

    def _update(
        self,
        span: Span,
        program: Program,
        generator_waits: bool,
        step: int,
        rows: StepRows,
        state: TrainState,
        frozen: Frozen,
    ) -> tuple[TrainState, dict[str, Any]]:
        """Starts the stage's step, which updates both networks or one of them."""
        if span.stage == "custom" and not (generator_waits and program.train_discriminator):
            assert self.custom_step is not None
            return self.custom_step(program, state, rows, frozen)
        if self.learnt is not None:  # sampled at the stage's start, or given
            return _learn_from(self.learnt, span, step, rows, state, frozen)
        if rows.rollout is None:
            return steps.seqkd_step(program, state, rows.teacher(), frozen)
        if generator_waits or not program.train_generator:
            pairs, replay = rows.pairs(), rows.replay(paid=False)
            return steps.discriminator_step(program, state, pairs, frozen, replay)
        if span.stage == "warmup":
            pairs, teacher, replay = rows.pairs(), rows.teacher(), rows.replay(paid=False)
            return steps.warmup_step(program, state, pairs, teacher, frozen, replay)
        return self._gad(span, program, rows, state, frozen)

    def _gad(
        self, span: Span, program: Program, rows: StepRows, state: TrainState, frozen: Frozen
    ) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state after a step of GAD, and its metrics with those of extra rewards."""
        mix, extra, paid = program.reward, None, {}
        uses_discriminator = mix is None or mix.discriminator > 0
        pairs, samples = rows.pairs_and_samples() if uses_discriminator else (None, rows.samples())
        replay = rows.replay(paid=True)
        if self.rewards is not None:
            assert rows.rollout is not None
            started, sources = time.perf_counter(), span.batches.prepared.rows
            given = rows.batch, rows.rollout, sources, self.chat, rows.fresh
            values, paid = self.rewards.pay(*given)
            extra = devices.put(values, self.mesh)
            paid["seconds/reward"] = time.perf_counter() - started
        if uses_discriminator:
            assert pairs is not None
            state, found = steps.gad_step(program, state, pairs, samples, frozen, replay, extra)
        else:
            assert extra is not None
            state, found = steps.reward_step(program, state, samples, extra, frozen)
        return state, found | paid

    def _replayed(self, program: Program, batch: PromptBatch, step: int) -> Drawn | None:
        """Returns older answers to a batch's prompts; None where D does not learn from any."""
        if self.pool is None or not program.train_discriminator:
            return None
        return self.pool.draw(batch.indices, step)

    def _remember(self, rows: StepRows, step: int) -> dict[str, float]:
        """Adds the step's answers to the pool, after its draws; returns what is measured of it."""
        if self.pool is None or not rows.shown:
            return {}
        self.pool.add(rows.batch.indices, rows.shown, step)
        measured = {} if rows.drawn is None else rows.drawn.metrics(self.rollout.samples)
        return measured | {"replay/gib": self.pool.nbytes / 2**30}

    def _sample(
        self, batch: PromptBatch, state: TrainState, frozen: Frozen, step: int
    ) -> _Sampling:
        """Samples the student's responses to the batch's prompts."""
        started = time.perf_counter()
        generator = adapters.join(frozen.generator, state.generator)
        with jax.profiler.TraceAnnotation("rollout"):
            weights = prefill.decode_copy(self.generator, generator)
            jax.block_until_ready(weights)
            resharded = time.perf_counter()
            shared = prefill.shared(self.generator, generator)
            weights_gib = (devices.device_bytes(weights) - devices.device_bytes(shared)) / 2**30
            rollout, calls = engine.sample_responses(
                self.generator,
                generator,
                batch.prompts,
                # Places in the batch, not rows: a mixture may draw a row twice in a step, and its
                # samples must differ. Every process has the whole batch, so places are the same.
                np.arange(len(batch), dtype=np.int32),
                randomness.sampling_key(state.key, step),
                self.rollout,
                self.mesh,
                weights,
            )
        seconds = time.perf_counter() - started
        return _Sampling(rollout, calls, seconds, resharded - started, weights_gib)

    def _rollout_metrics(self, sampling: _Sampling, batch: PromptBatch) -> dict[str, float]:
        rollout = sampling.rollout
        lengths = np.asarray(rollout.lengths)
        metrics = response_metrics(
            lengths,
            ~np.asarray(rollout.finished),
            [len(response) for response in batch.responses],
            [response[-1] not in self.chat.end_tokens for response in batch.responses],
        )
        samples = [sample for group in ragged(rollout.tokens, lengths) for sample in group]
        return metrics | {
            "response/repetition": repetition(samples),
            "response/teacher_repetition": repetition(batch.responses),
            "response/script_drift": scripts.drift(self.scripts, samples, batch.responses),
            "rollout/occupancy": engine.occupancy(rollout, sampling.calls, data_shards(self.mesh)),
            "seconds/rollout": sampling.seconds,
            "tokens_per_second/rollout": float(lengths.sum()) / sampling.seconds,
            "reshard/gib": sampling.weights_gib,
            "seconds/reshard": sampling.resharding,
        }


def _learn_from(
    learnt: Learnt, span: Span, step: int, rows: StepRows, state: TrainState, frozen: Frozen
) -> tuple[TrainState, dict[str, Any]]:
    """DPO prefers the teacher's response to the answers; rejection sampling imitates them."""
    numbers = rows.batch.indices
    answers = learnt.of(numbers, step)
    if span.stage == "dpo":
        return preference.dpo_step(span.program, state, rows.groups(answers), frozen)
    state, found = steps.seqkd_step(span.program, state, rows.alone(answers), frozen)
    return state, found | learnt.metrics(numbers)


def _without(program: Program, paused: Side | None) -> Program:
    """Returns the program, with the discriminator still where an alarm pauses it."""
    frozen = dataclasses.replace(program, train_discriminator=False)
    return frozen if paused == "discriminator" else program

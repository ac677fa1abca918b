"""One iteration of a run: sample → pack → one compiled step.

What an iteration depends on is in the training state or follows from (seed, step), so a resumed run
continues as if it had never stopped.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gad_jax.base import host_memory
from gad_jax.core import packing, steps
from gad_jax.core.layout import Shape, fewest_micro_batches
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
from gad_jax.training.health import Side
from gad_jax.training.profiler import Profiler
from gad_jax.training.replay import Answers, Drawn, Pool
from gad_jax.training.rewards.paying import Rewards
from gad_jax.training.stages import Span
from gad_jax.types import Frozen, PackedRows, Replay, Rollout, TrainState

Ragged = list[list[np.ndarray]]
"""Numbers of each response, prompt by prompt: B lists of N arrays."""


class Iteration:
    """What all iterations of a run share; `run` is one of them.

    `shapes` are those of the packed rows so far. Packing prefers them, so that a run compiles few
    programs. `pool` has the older answers of the student, where the discriminator sees some again.
    """

    def __init__(
        self,
        generator: DecoderConfig,
        chat: Chat,
        mesh: Mesh,
        rollout: RolloutProgram,
        row_tokens: int,
        micro_batches: int,
        shapes: set[Shape],
        profiler: Profiler,
        pool: Pool | None = None,
        rewards: Rewards | None = None,
    ) -> None:
        self.generator, self.chat, self.mesh, self.rollout = generator, chat, mesh, rollout
        self.row_tokens, self.micro_batches, self.shapes = row_tokens, micro_batches, shapes
        self.profiler, self.pool, self.rewards = profiler, pool, rewards
        self.compiles = devices.CompileCounter()
        self.scripts = scripts.token_scripts(chat.tokenizer, generator.vocabulary)

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
        program = span.program
        if paused == "discriminator":
            program = dataclasses.replace(program, train_discriminator=False)
        # In the first steps of a stage, or while an alarm pauses G.
        generator_waits = span.is_discriminator_only(step) or paused == "generator"
        rollout, metrics = None, {}
        if span.samples_student:
            rollout, metrics = self._sample(batch, state, frozen, step)
            if devices.platform() == "cpu":  # the layers of the decode copy, too small to be mapped
                host_memory.give_back()
        sampled = time.perf_counter()
        rows = _Rows(self, batch, rollout, self._replayed(program, batch, step))

        # The stage's step, which updates both networks or one of them.
        if rollout is None:
            state, found = steps.seqkd_step(program, state, rows.teacher(), frozen)
        elif generator_waits or not program.train_generator:
            pairs, replay = rows.pairs(), rows.replay(paid=False)
            state, found = steps.discriminator_step(program, state, pairs, frozen, replay)
        elif span.stage == "warmup":
            pairs, teacher, replay = rows.pairs(), rows.teacher(), rows.replay(paid=False)
            state, found = steps.warmup_step(program, state, pairs, teacher, frozen, replay)
        else:
            state, found = self._gad(span, program, rows, state, frozen)
        metrics |= self._remember(rows, step)

        metrics |= {name: float(value) for name, value in jax.device_get(found).items()}
        metrics |= {f"health/{paused}_paused": 1.0} if paused else {}
        ended = time.perf_counter()
        metrics |= rows.metrics(ended - sampled - metrics.get("seconds/reward", 0.0)) | {
            "seconds/step": ended - started,
            "seconds/compile": self.compiles.seconds - compiled[1],
            "compiles": float(self.compiles.count - compiled[0]),
        }
        peak = devices.peak_memory()
        metrics |= {"memory/peak_gib": peak / 2**30} if peak else {}
        self.profiler.end(step + 1, metrics)
        return state, metrics

    def _gad(
        self, span: Span, program: Program, rows: "_Rows", state: TrainState, frozen: Frozen
    ) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state after a step of GAD, and its metrics with those of extra rewards."""
        extra, paid = None, {}
        pairs = rows.pairs() if program.reward is None or program.reward.discriminator else None
        samples, replay = rows.samples(), rows.replay(paid=True)
        if self.rewards is not None:
            assert rows.rollout is not None
            started = time.perf_counter()
            prepared = span.batches.prepared.rows
            values, paid = self.rewards.pay(rows.batch, rows.rollout, prepared, self.chat)
            extra = devices.put(values, self.mesh)
            paid["seconds/reward"] = time.perf_counter() - started
        if pairs is None:
            assert extra is not None
            state, found = steps.reward_step(program, state, samples, extra, frozen)
        else:
            state, found = steps.gad_step(program, state, pairs, samples, frozen, replay, extra)
        return state, found | paid

    def _replayed(self, program: Program, batch: PromptBatch, step: int) -> Drawn | None:
        """Returns older answers to a batch's prompts; None where D does not learn from any."""
        if self.pool is None or not program.train_discriminator:
            return None
        return self.pool.draw(batch.indices, step)

    def _remember(self, rows: "_Rows", step: int) -> dict[str, float]:
        """Adds the step's answers to the pool, after its draws; returns what is measured of it."""
        if self.pool is None or not rows.shown:
            return {}
        self.pool.add(rows.batch.indices, rows.shown, step)
        measured = {} if rows.drawn is None else rows.drawn.metrics(self.rollout.samples)
        return measured | {"replay/gib": self.pool.nbytes / 2**30}

    def _sample(
        self, batch: PromptBatch, state: TrainState, frozen: Frozen, step: int
    ) -> tuple[Rollout, dict[str, float]]:
        """Returns the student's responses to the batch's prompts, and what is measured of them."""
        started = time.perf_counter()
        generator = adapters.join(frozen.generator, state.generator)
        with jax.profiler.TraceAnnotation("rollout"):
            weights = prefill.decode_copy(self.generator, generator)
            jax.block_until_ready(weights)
            resharded = time.perf_counter()
            weights_gib = devices.device_bytes(weights) / 2**30
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
        return rollout, self._rollout_metrics(rollout, calls, batch, seconds) | {
            "reshard/gib": weights_gib,
            "seconds/reshard": resharded - started,
        }

    def _rollout_metrics(
        self, rollout: Rollout, calls: tuple[DecodeCall, ...], batch: PromptBatch, seconds: float
    ) -> dict[str, float]:
        lengths = np.asarray(rollout.lengths)
        metrics = response_metrics(
            lengths,
            ~np.asarray(rollout.finished),
            [len(response) for response in batch.responses],
            [response[-1] not in self.chat.end_tokens for response in batch.responses],
        )
        samples = [sample for group in _ragged(rollout.tokens, lengths) for sample in group]
        return metrics | {
            "response/repetition": repetition(samples),
            "response/teacher_repetition": repetition(batch.responses),
            "response/script_drift": scripts.drift(self.scripts, samples, batch.responses),
            "rollout/occupancy": engine.occupancy(rollout, calls, data_shards(self.mesh)),
            "seconds/rollout": seconds,
            "tokens_per_second/rollout": float(lengths.sum()) / seconds,
        }


class _Rows:
    """The packed rows of one iteration: lays them out, copies them to the devices, counts them.

    `drawn` are the older answers that D sees, and `shown` the samples as it sees them."""

    def __init__(
        self,
        iteration: Iteration,
        batch: PromptBatch,
        rollout: Rollout | None,
        drawn: Drawn | None,
    ) -> None:
        self.iteration, self.batch, self.rollout, self.drawn = iteration, batch, rollout, drawn
        self.shown = [] if rollout is None else _shown(rollout, iteration.chat)
        self.packed: list[PackedRows] = []  # on the host, in the order in which they were packed
        self.seconds = 0.0

    def teacher(self) -> PackedRows:
        """The teacher's response to every prompt."""
        responses = [[response] for response in self.batch.responses]
        return self._pack(responses, micro_batches=self._fewest(responses) if self.packed else 0)

    def pairs(self) -> PackedRows:
        """The teacher's response and the samples of every prompt, older answers among them."""
        samples = self.shown if self.drawn is None else self.drawn.mixed(self.shown)
        groups = zip(self.batch.responses, samples, strict=True)
        return self._pack([[teacher, *samples] for teacher, samples in groups])

    def samples(self) -> PackedRows:
        """The samples of every prompt with the sampler's log-probabilities and thresholds."""
        rollout = self.rollout
        assert rollout is not None
        samples = _ragged(rollout.tokens, rollout.lengths)
        given = [rollout.logprobs]
        given += [rollout.thresholds] if rollout.thresholds is not None else []
        return self._pack(samples, *(_ragged(values, rollout.lengths) for values in given))

    def replay(self, *, paid: bool) -> Replay | None:
        """What a step needs to know of the older answers in the pairs; None where there are none.

        With `paid`, also the samples that they displaced, for their rewards."""
        if self.drawn is None or not self.drawn.ages:
            return None
        samples = self.iteration.rollout.samples
        old = devices.put(self.drawn.old(samples), self.iteration.mesh)
        if not paid:
            return Replay(old)
        displaced = [group[samples - self.drawn.places :] for group in self.shown]
        return Replay(old, self._pack(displaced, micro_batches=self._fewest(displaced)))

    def _fewest(self, responses: Answers) -> int:
        """The fewest micro-batches that are no larger than those of the pairs, which were packed
        first: that memory is needed anyway."""
        of_pairs = self.packed[0].tokens
        prompts = self.batch.prompts
        return fewest_micro_batches(prompts, responses, of_pairs.shape[0], of_pairs[0].size)

    def metrics(self, seconds: float) -> dict[str, float]:
        """Returns the metrics of packing and updating, which together took so many seconds."""
        positions = sum(rows.tokens.size for rows in self.packed)
        padding = sum(rows.tokens.size * packing.padding_share(rows) for rows in self.packed)
        return {
            "seconds/pack": self.seconds,
            "seconds/update": seconds - self.seconds,
            "tokens_per_second/update": positions / (seconds - self.seconds),
            "packing/padding": padding / positions,
        }

    def _pack(self, responses: Ragged, *given: Ragged, micro_batches: int = 0) -> PackedRows:
        started = time.perf_counter()
        shared = self.iteration
        rows = packing.pack(
            self.batch.prompts,
            responses,
            *given,
            row_tokens=shared.row_tokens,
            micro_batches=micro_batches or shared.micro_batches,
            shards=data_shards(shared.mesh),
            known=shared.shapes,
        )
        shared.shapes.add(_shape(rows))
        shared.profiler.saw(rows)
        self.packed.append(rows)
        placed = packing.place(rows, shared.mesh)
        self.seconds += time.perf_counter() - started
        return placed


def _shape(rows: PackedRows) -> Shape:
    count, height, length = rows.tokens.shape
    return count, height, length


def _shown(rollout: Rollout, chat: Chat) -> Answers:
    """Returns the samples of every prompt as D sees them."""
    return [
        [_end_as_teacher(sample, chat) for sample in group]
        for group in _ragged(rollout.tokens, rollout.lengths)
    ]


def _end_as_teacher(sample: np.ndarray, chat: Chat) -> np.ndarray:
    """Returns a sample whose end token is the teacher's: which of a model's several end tokens was
    drawn must not tell the discriminator who wrote the text."""
    if sample[-1] not in chat.end_tokens:
        return sample
    return np.append(sample[:-1], np.int32(chat.end_token))


def _ragged(values: Any, lengths: Any) -> Ragged:
    """Returns each response's values without what lies after its end: [B N R] and [B N] → lists."""
    return [
        [row[:length] for row, length in zip(group, counts, strict=True)]
        for group, counts in zip(values, lengths, strict=True)
    ]

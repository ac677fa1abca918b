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
from gad_jax.training.stages import Span
from gad_jax.types import Frozen, PackedRows, Rollout, TrainState

Ragged = list[list[np.ndarray]]
"""Numbers of each response, prompt by prompt: B lists of N arrays."""


class Iteration:
    """What all iterations of a run share; `run` is one of them.

    `shapes` are those of the packed rows so far. Packing prefers them, so that a run compiles few
    programs.
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
    ) -> None:
        self.generator, self.chat, self.mesh, self.rollout = generator, chat, mesh, rollout
        self.row_tokens, self.micro_batches, self.shapes = row_tokens, micro_batches, shapes
        self.profiler = profiler
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
        rows = _Rows(self)
        rollout, metrics = None, {}
        if span.samples_student:
            rollout, metrics = self._sample(batch, state, frozen, step)
            if devices.platform() == "cpu":  # the layers of the decode copy, too small to be mapped
                host_memory.give_back()
        sampled = time.perf_counter()

        # The stage's step, which updates both networks or one of them.
        if rollout is None:
            state, found = steps.seqkd_step(program, state, rows.teacher(batch), frozen)
        elif generator_waits or not program.train_generator:
            pairs = rows.pairs(batch, rollout)
            state, found = steps.discriminator_step(program, state, pairs, frozen)
        elif span.stage == "warmup":
            pairs = rows.pairs(batch, rollout)
            state, found = steps.warmup_step(program, state, pairs, rows.teacher(batch), frozen)
        else:
            pairs = rows.pairs(batch, rollout)
            samples = rows.samples(batch, rollout)
            state, found = steps.gad_step(program, state, pairs, samples, frozen)

        metrics |= {name: float(value) for name, value in jax.device_get(found).items()}
        metrics |= {f"health/{paused}_paused": 1.0} if paused else {}
        ended = time.perf_counter()
        metrics |= rows.metrics(ended - sampled) | {
            "seconds/step": ended - started,
            "seconds/compile": self.compiles.seconds - compiled[1],
            "compiles": float(self.compiles.count - compiled[0]),
        }
        peak = devices.peak_memory()
        metrics |= {"memory/peak_gib": peak / 2**30} if peak else {}
        self.profiler.end(step + 1, metrics)
        return state, metrics

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
    """The packed rows of one iteration: lays them out, copies them to the devices, counts them."""

    def __init__(self, iteration: Iteration) -> None:
        self.iteration = iteration
        self.packed: list[PackedRows] = []  # on the host, in the order in which they were packed
        self.seconds = 0.0

    def teacher(self, batch: PromptBatch) -> PackedRows:
        """The teacher's response to every prompt."""
        responses = [[response] for response in batch.responses]
        if not self.packed:
            return self._pack(batch, responses)
        # After the pairs: the fewest micro-batches that are no larger than those of the pairs,
        # whose memory is needed anyway.
        of_pairs = self.packed[0].tokens
        count = fewest_micro_batches(batch.prompts, responses, of_pairs.shape[0], of_pairs[0].size)
        return self._pack(batch, responses, micro_batches=count)

    def pairs(self, batch: PromptBatch, rollout: Rollout) -> PackedRows:
        """The teacher's response and the samples of every prompt, as D sees them."""
        shown = [
            [_end_as_teacher(sample, self.iteration.chat) for sample in group]
            for group in _ragged(rollout.tokens, rollout.lengths)
        ]
        groups = zip(batch.responses, shown, strict=True)
        return self._pack(batch, [[teacher, *samples] for teacher, samples in groups])

    def samples(self, batch: PromptBatch, rollout: Rollout) -> PackedRows:
        """The samples of every prompt with the sampler's log-probabilities and thresholds."""
        samples = _ragged(rollout.tokens, rollout.lengths)
        given = [rollout.logprobs]
        given += [rollout.thresholds] if rollout.thresholds is not None else []
        return self._pack(batch, samples, *(_ragged(values, rollout.lengths) for values in given))

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

    def _pack(
        self,
        batch: PromptBatch,
        responses: Ragged,
        *given: Ragged,
        micro_batches: int = 0,
    ) -> PackedRows:
        started = time.perf_counter()
        shared = self.iteration
        rows = packing.pack(
            batch.prompts,
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

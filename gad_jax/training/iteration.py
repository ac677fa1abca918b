"""One iteration of a run: sample → pack → one compiled step; `ahead.py` has another order.

What an iteration depends on is in the training state or follows from (seed, step), so a resumed run
continues as if it had never stopped.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from gad_jax.base import host_memory
from gad_jax.core import preference, steps
from gad_jax.core.layout import Shape
from gad_jax.core.program import Program
from gad_jax.data import scripts
from gad_jax.data.chat import Chat
from gad_jax.data.epochs import PromptBatch
from gad_jax.distributed import devices
from gad_jax.metrics.responses import repetition, response_metrics
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.engine import RolloutProgram
from gad_jax.training import sampling
from gad_jax.training.ahead import Inputs, Pending, Watch, Work
from gad_jax.training.custom_step import CustomStep
from gad_jax.training.health import Side
from gad_jax.training.profiler import Profiler
from gad_jax.training.replay import Answers, Drawn, Pool
from gad_jax.training.rewards.paying import Rewards
from gad_jax.training.sampling import Sampling
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


class Iteration:
    """What all iterations of a run share; `run` is one of them.

    `pool` has the older answers of the student, where the discriminator sees some again, and
    `learnt` the answers that a stage learns from next to the teacher's text, or in its place.
    `pending` are the responses of the next step, where they are sampled ahead.
    """

    def __init__(
        self,
        generator: DecoderConfig,
        chat: Chat,
        mesh: Mesh,
        rollout: RolloutProgram,
        packer: Packer,
        profiler: Profiler,
        pool: Pool | None = None,
        rewards: Rewards | None = None,
        custom_step: CustomStep | None = None,
        pending: Pending | None = None,
    ) -> None:
        self.generator, self.chat, self.mesh, self.rollout = generator, chat, mesh, rollout
        self.packer, self.profiler = packer, profiler
        self.pool, self.rewards, self.custom_step = pool, rewards, custom_step
        self.pending = pending
        self.learnt: Learnt | None = None
        self.cache_sizes: set[int] = set()  # of prompts, in the rollouts so far
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
        spent = self.packer.spent
        spent.pack = spent.reward = 0.0
        ready, samplings = self._sampled(span, step, state, frozen, paused)
        sampled = time.perf_counter()
        work = self._work(span, step, paused, ready)
        state, found = self._update(span, step, paused, work, state, frozen)
        # The devices compute until the metrics are there: what the host does meanwhile is free.
        host = self.between + time.perf_counter() - sampled
        prepared = spent.pack + spent.reward
        watch = None if self.pending is None else Watch(found)
        for packed in work.rows.packed:
            self.profiler.saw(packed)
        metrics = sampling.metrics(samplings, self.mesh) | self._response_metrics(work.rows)
        metrics |= self._remember(work.rows, step)
        if watch is not None:
            host += self._prepare_next(span, step, found, watch)

        metrics |= {name: float(value) for name, value in jax.device_get(found).items()}
        metrics |= {f"health/{paused}_paused": 1.0} if paused else {}
        ended = time.perf_counter()
        computed = ended if watch is None else watch.seconds()
        metrics |= work.rows.metrics(computed - sampled - prepared) | {
            "seconds/pack": spent.pack,
            "seconds/step": ended - started,
            "seconds/compile": self.compiles.seconds - compiled[1],
            "compiles": float(self.compiles.count - compiled[0]),
        }
        metrics |= {"seconds/reward": spent.reward} if spent.reward else {}
        if not metrics["compiles"]:  # else tracing would count as waiting
            metrics["host_share"] = host / (self.between + ended - started)
        peak = devices.peak_memory()
        metrics |= {"memory/peak_gib": peak / 2**30} if peak else {}
        self.profiler.end(step + 1, metrics)
        return state, metrics

    @property
    def shapes(self) -> set[tuple[Shape, ...]]:
        """Row shapes for a checkpoint: those from before the next step was prepared."""
        return self.packer.shapes if self.pending is None else self.pending.shapes

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what of a run is on the host, for a checkpoint."""
        found = {} if self.pool is None else self.pool.arrays()
        return found if self.pending is None else found | self.pending.arrays()

    def _sampled(
        self, span: Span, step: int, state: TrainState, frozen: Frozen, paused: Side | None
    ) -> tuple[Pending | None, list[Sampling]]:
        """Returns the responses of a step, and what was sampled: these, unless they waited for the
        step, and with `rollout.ahead` those of the next step."""
        is_ahead = span.program.behaviour == "sampler"
        ready, self.pending = (self.pending if is_ahead else None), None
        samplings: list[Sampling] = []
        if ready is None and span.samples_student:
            samplings.append(self._sample(span, step, state, frozen))
            ready = Pending(samplings[-1].rollout, paused)
        if is_ahead and step + 1 < span.end:
            samplings.append(self._sample(span, step + 1, state, frozen))
            self.pending = Pending(samplings[-1].rollout, paused)
        if samplings and devices.platform() == "cpu":
            host_memory.give_back()  # the layers of the decode copy, too small to be mapped
        return ready, samplings

    def _work(self, span: Span, step: int, paused: Side | None, ready: Pending | None) -> Work:
        """Returns what the host prepares for a step, prepared by now."""
        if ready is None:
            return self._prepare(span, step, None, paused)
        if ready.work is None:  # just sampled, or from a checkpoint
            ready.work = self._prepare(span, step, ready.rollout, ready.paused)
        if ready.paused == paused:
            return ready.work
        return self._prepare(span, step, ready.rollout, paused, earlier=ready.work.inputs)

    def _prepare_next(self, span: Span, step: int, found: dict[str, Any], watch: Watch) -> float:
        """Prepares the next step while the devices compute `found`; returns for how many seconds
        they then waited."""
        assert self.pending is not None
        pending, self.pending.shapes = self.pending, set(self.packer.shapes)
        settle = partial(jax.block_until_ready, found)
        pending.work = self._prepare(span, step + 1, pending.rollout, pending.paused, settle)
        return max(time.perf_counter() - watch.seconds(), 0.0)

    def _prepare(
        self,
        span: Span,
        step: int,
        rollout: Rollout | None,
        paused: Side | None,
        settle: Callable[[], object] = lambda: None,
        earlier: Inputs | None = None,
    ) -> Work:
        """Lays out the rows of a step; of one of GAD, packs them and pays extra rewards, unless
        `earlier` has what these responses were paid."""
        program = _without(span.program, paused)
        batch = span.batches[step - span.start]
        replayed = self._replayed(program, batch, step)
        rows = StepRows(self.packer, self.chat, batch, rollout, replayed)
        if span.stage != "gad" or _generator_waits(span, step, paused):
            return Work(rows, None)
        return Work(rows, self._inputs(span, program, rows, settle, earlier))

    def _inputs(
        self,
        span: Span,
        program: Program,
        rows: StepRows,
        settle: Callable[[], object],
        earlier: Inputs | None,
    ) -> Inputs:
        mix, extra, paid = program.reward, None, {}
        if mix is None or mix.discriminator > 0:
            pairs, samples = rows.pairs_and_samples()
        else:
            pairs, samples = None, rows.samples()
        replay = rows.replay(paid=True)
        if earlier is not None:
            extra, paid = earlier.extra, earlier.paid
        elif self.rewards is not None:
            assert rows.rollout is not None
            spent = self.packer.spent
            packing, started = spent.pack, time.perf_counter()
            sources = span.batches.prepared.rows
            given = rows.batch, rows.rollout, sources, self.chat, rows.fresh, settle
            values, paid = self.rewards.pay(*given)
            extra = devices.put(values, self.mesh)
            spent.reward += time.perf_counter() - started - (spent.pack - packing)
        return Inputs(pairs, samples, replay, extra, paid)

    def _update(
        self,
        span: Span,
        step: int,
        paused: Side | None,
        work: Work,
        state: TrainState,
        frozen: Frozen,
    ) -> tuple[TrainState, dict[str, Any]]:
        """Starts the stage's step, which updates both networks or one of them."""
        program, rows = _without(span.program, paused), work.rows
        generator_waits = _generator_waits(span, step, paused)
        if work.inputs is not None:
            return _gad(program, work.inputs, state, frozen)
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
        pairs, teacher, replay = rows.pairs(), rows.teacher(), rows.replay(paid=False)
        return steps.warmup_step(program, state, pairs, teacher, frozen, replay)

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

    def _sample(self, span: Span, step: int, state: TrainState, frozen: Frozen) -> Sampling:
        batch = span.batches[step - span.start]
        given = self.generator, self.rollout, self.mesh, batch, step, state, frozen
        return sampling.sample(*given, self.cache_sizes)

    def _response_metrics(self, rows: StepRows) -> dict[str, float]:
        """Returns what is measured of the responses that a step learns from; {} without any."""
        rollout, batch = rows.rollout, rows.batch
        if rollout is None:
            return {}
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
        }


def _gad(
    program: Program, inputs: Inputs, state: TrainState, frozen: Frozen
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state after a step of GAD, and its metrics with those of extra rewards."""
    pairs, samples, replay, extra, paid = inputs
    if pairs is not None:
        state, found = steps.gad_step(program, state, pairs, samples, frozen, replay, extra)
    else:
        assert extra is not None
        state, found = steps.reward_step(program, state, samples, extra, frozen)
    return state, found | paid


def _generator_waits(span: Span, step: int, paused: Side | None) -> bool:
    """Returns whether the next step trains D alone: it is one of the stage's first, or an alarm
    pauses G."""
    return span.is_discriminator_only(step) or paused == "generator"


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

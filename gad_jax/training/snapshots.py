"""Answers that a stage learns from: the student's own at its start, or the rejected ones of rows.

The student answers the prompts of a stage once, with its weights at the stage's start (a snapshot).

The answers are in the run directory, `snapshots/STAGE/`, in parts of a step's prompts each. A part
is written as soon as it is sampled and carries a checksum, so a run that was killed samples only
what is missing. An answer depends on the seed and on its row's number alone, so nothing else
changes.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from gad_jax.base import exits, files
from gad_jax.base.errors import StorageError, UserError
from gad_jax.core import packing, preference
from gad_jax.data.pipeline import Prepared
from gad_jax.data.ragged import Ragged, Tokens
from gad_jax.distributed import processes
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import adapters, source, weights
from gad_jax.rollout import engine, prefill
from gad_jax.settings import baselines
from gad_jax.settings.config import Config
from gad_jax.training import origins, randomness
from gad_jax.training.iteration import Iteration
from gad_jax.training.origins import Origins
from gad_jax.training.stages import Span
from gad_jax.training.step_rows import end_as_teacher, ragged
from gad_jax.types import Frozen, Params, TrainState

DIRECTORY = "snapshots"

_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Answers to some rows: `tokens` holds those of the first row, then of the second, and so on.

    `sampled` are the lengths of all samples and `cut` says which of them were cut; `scores` are
    those of D where it chose one of them, else empty. Both are [rows, samples].
    """

    rows: np.ndarray
    tokens: Ragged
    sampled: np.ndarray
    cut: np.ndarray
    scores: np.ndarray


class Answers:
    """Answers by the number of the row."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._places = {int(row): (p, n) for p in parts for n, row in enumerate(p.rows)}

    def of(self, rows: np.ndarray, step: int) -> list[list[Tokens]]:
        """Returns the answers to each row, which are the same in every step."""
        del step
        found: list[list[Tokens]] = []
        for part, place in (self._places[int(row)] for row in rows):
            each = len(part.tokens) // len(part.rows)
            found.append([part.tokens[n] for n in range(place * each, (place + 1) * each)])
        return found

    def metrics(self, rows: np.ndarray) -> dict[str, float]:
        """Returns what D's scores say of the answers to some rows; nothing without scores."""
        scores = [part.scores[place] for part, place in (self._places[int(row)] for row in rows)]
        if not scores or not scores[0].size:
            return {}
        return {
            "rejection/best_score": float(np.mean([np.max(each) for each in scores])),
            "rejection/mean_score": float(np.mean(scores)),
        }


class Given:
    """The rejected answers of the rows, one to each: where a row has several, a step draws one."""

    def __init__(self, data: Prepared, seed: int) -> None:
        self._data, self._seed = data, seed

    def of(self, rows: np.ndarray, step: int) -> list[list[Tokens]]:
        """Returns the answer to each row."""
        draw = randomness.rejected_choice(self._seed, step)
        choices = [self._data.rejected(int(row)) for row in rows]
        return [[answers[draw.integers(len(answers))]] for answers in choices]

    def metrics(self, rows: np.ndarray) -> dict[str, float]:
        """Returns nothing: no one has scored them."""
        del rows
        return {}


class Snapshots:
    """The snapshots of a run; `prepare` makes the one of a stage, or reads what there is of it."""

    def __init__(self, config: Config, data: Prepared, iteration: Iteration) -> None:
        self._directory = Path(config.run_dir) / DIRECTORY
        self._config, self._data, self._iteration = config, data, iteration

    def prepare(
        self,
        span: Span,
        step: int,
        state: TrainState,
        frozen: Frozen,
        keep_going: Callable[[], bool],
        say: Callable[[str], None],
    ) -> Answers | Given | None:
        """Returns the answers that a stage learns from; None where it needs none.

        All processes call it before the stage's first step, or the first one after a resume. Where
        `keep_going` says no between two parts, it raises Interrupted. Raises StorageError where
        answers are missing that the weights of now would not give.
        """
        samples = baselines.snapshot_samples(self._config, span.stage)
        if not samples:
            return Given(self._data, self._config.seed) if span.stage == "dpo" else None
        wanted = _parts(span)
        identity = self._identity(span, samples)
        place = self._directory / span.stage
        paths = [place / f"{number:05d}.npz" for number in range(len(wanted))]
        found = [read(path, identity, rows) for path, rows in zip(paths, wanted, strict=True)]
        missing = np.flatnonzero(processes.any_of(*(part is None for part in found)))
        if not missing.size:
            return Answers([part for part in found if part is not None])
        policy = state.generator if step == span.start else state.reference
        if policy is None:
            raise StorageError(
                f"{place} lacks the answers to some prompts of {span.stage}, and the weights that "
                "gave the others are gone; copy its files back, give the stage the steps that it "
                f"had, or begin another --run_dir with --student.path={self._config.run_dir}@STEP"
            )
        sampler = _Sampler(self._iteration, span, samples, adapters.join(frozen.generator, policy))
        say(f"{span.stage}: the student answers {sum(map(len, wanted))} prompts, {samples} times")
        for done, number in enumerate(missing):
            if not keep_going():
                raise Interrupted
            exits.watchdog(60 * self._config.limits.other_minutes)
            part = sampler.sample(self._data, wanted[number], state, frozen)
            found[number] = part
            if processes.is_first():
                place.mkdir(parents=True, exist_ok=True)
                files.write_atomic(paths[number], _written(part, identity))
            if (done + 1) * 10 // len(missing) > done * 10 // len(missing):
                say(f"{span.stage}: {done + 1} of {len(missing)} parts are answered")
        parts = [part for part in found if part is not None]
        say(_summary(span.stage, parts))
        return Answers(parts)

    def _identity(self, span: Span, samples: int) -> str:
        """Returns what the answers follow from, next to the weights, as text."""
        config = self._config
        about = {
            "stage": span.stage,
            "start": span.start,
            "seed": config.seed,
            "data": self._data.fingerprint,
            "samples": samples,
            "student": config.student.path,
            "limit": config.rollout.max_new_tokens,
            "sampler": dataclasses.asdict(self._iteration.rollout.sampler),
        }
        return json.dumps(about, sort_keys=True)


class Interrupted(Exception):
    """A stop request came while the student answered; what it has answered is kept."""


def _parts(span: Span) -> list[np.ndarray]:
    """Returns the rows of each part, in the order in which the stage's steps use them.

    A stage that becomes longer adds rows at the end, and the parts before stay what they are.
    """
    used: dict[int, None] = {}
    steps = span.end - span.start
    for step in range(steps):
        used.update(dict.fromkeys(span.batches[step].indices.tolist()))
    rows = np.asarray(list(used), np.int32)
    each = len(span.batches[0])
    return [rows[first : first + each] for first in range(0, len(rows), each)]


class _Sampler:
    """Samples parts with one decode copy of the weights."""

    def __init__(self, iteration: Iteration, span: Span, samples: int, policy: Params) -> None:
        self.iteration, self.span, self.policy = iteration, span, policy
        self.program = dataclasses.replace(iteration.rollout, samples=samples)
        self.weights = prefill.decode_copy(iteration.generator, policy)
        self.each = len(span.batches[0])

    def sample(self, data: Prepared, rows: np.ndarray, state: TrainState, frozen: Frozen) -> Part:
        """Returns the answers to these rows; of a stage that chooses, the one that D prefers."""
        shared = self.iteration
        # Every part has one shape, so that all take the same programs: the last is filled up.
        filled = np.resize(rows, self.each)
        prompts = [data.prompt(int(row)) for row in filled]
        rollout, _ = engine.sample_responses(
            shared.generator,
            self.policy,
            prompts,
            filled,
            randomness.sampling_key(state.key, self.span.start),
            self.program,
            shared.mesh,
            self.weights,
            sizes=shared.cache_sizes,
        )
        lengths = np.asarray(rollout.lengths)
        answers = [
            [end_as_teacher(sample, shared.chat) for sample in group]
            for group in ragged(rollout.tokens, lengths)
        ]
        scores = np.zeros((len(filled), 0), np.float32)
        if self.span.stage == "rejection":
            scores = self._scores(prompts, answers, state, frozen)
            best = np.argmax(np.where(np.isfinite(scores), scores, -np.inf), axis=1)
            answers = [[group[at]] for group, at in zip(answers, best, strict=True)]
        count = len(rows)
        tokens = Ragged.of([one.tolist() for group in answers[:count] for one in group])
        cut = ~np.asarray(rollout.finished)
        return Part(rows, tokens, lengths[:count], cut[:count], scores[:count])

    def _scores(
        self,
        prompts: list[np.ndarray],
        answers: list[list[np.ndarray]],
        state: TrainState,
        frozen: Frozen,
    ) -> np.ndarray:
        shared = self.iteration
        # No shape that the run has used is preferred: a part that is sampled again gets the same
        # scores, and a run that reads its parts the same shapes as one that sampled them.
        last = shared.packer.judged - 1
        packed = packing.pack(
            prompts,
            [[np.minimum(answer, last) for answer in group] for group in answers],
            row_tokens=shared.packer.row_tokens,
            micro_batches=shared.packer.micro_batches,
            shards=data_shards(shared.mesh),
        )
        placed = packing.place(packed, shared.mesh)
        found = preference.score_responses(self.span.program, state.discriminator, placed, frozen)
        return np.asarray(jax.device_get(found), np.float32)


def _summary(stage: str, parts: Sequence[Part]) -> str:
    lengths, cut = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("sampled", "cut")
    )
    return (
        f"{stage}: {lengths.size} answers to {len(lengths)} prompts, {lengths.mean():.1f} tokens "
        f"on average, {cut.mean():.1%} cut"
    )


def expected_bytes(config: Config, span: Span, length: float) -> int:
    """Returns the bytes of a stage's snapshot with answers of this mean length; 0 without one."""
    samples = baselines.snapshot_samples(config, span.stage)
    if not samples:
        return 0
    prompts = min(len(span.batches.prepared), (span.end - span.start) * len(span.batches[0]))
    kept, scores = (1, samples) if span.stage == "rejection" else (samples, 0)
    each = kept * (4 * length + 8) + 5 * samples + 4 * scores + 4
    return int(prompts * each) + 2300 * -(-prompts // len(span.batches[0]))


def _written(part: Part, identity: str) -> bytes:
    """Returns a part's file."""
    arrays = {
        "identity": np.frombuffer(identity.encode(), np.uint8),
        "rows": part.rows,
        "tokens": part.tokens.flat,
        "lengths": part.tokens.lengths,
        "sampled": part.sampled,
        "cut": part.cut,
        "scores": part.scores,
    }
    file = io.BytesIO()
    np.savez(file, digest=_digest(arrays), **arrays)
    return file.getvalue()


def read(path: Path, identity: str, rows: np.ndarray) -> Part | None:
    """Returns the part of a file; None where it is missing, damaged, or of something else."""
    try:
        # Not by its path: numpy leaves the file open where it is damaged.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        digest = arrays.pop("digest")
        if not np.array_equal(digest, _digest(arrays)):
            return None
        if arrays["identity"].tobytes().decode() != identity:
            return None
        if not np.array_equal(arrays["rows"], rows):
            return None
        ends = np.cumsum(arrays["lengths"])
        tokens = Ragged(arrays["tokens"], ends - arrays["lengths"], ends)
        return Part(rows, tokens, arrays["sampled"], arrays["cut"], arrays["scores"])
    except _DAMAGE:
        return None


def _digest(arrays: dict[str, np.ndarray]) -> np.ndarray:
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return np.frombuffer(found.digest(), np.uint8)


def refuse_untrained(config: Config, taken: Origins) -> None:
    """Raises UserError where a stage would choose or be paid by a discriminator that no one has
    trained. `taken` are the networks that come from other runs."""
    stage = baselines.judged_by_untrained(config)
    if not stage:
        return
    name = config.discriminator.path  # the settings ask for one
    judge = origins.discriminator(taken, config)
    if judge is None and weights.read_config(source.resolve(name)).head != "score":
        raise UserError(
            f"--discriminator.path={name} has no score head, so it cannot judge samples for "
            f"--stage={stage}; name a run with a trained discriminator, or the directory of one, "
            f"or train it first with --stage=warmup,{stage}"
        )

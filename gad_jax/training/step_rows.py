"""The packed rows of a step: the responses that the networks see, laid out, on the devices."""

import dataclasses
import time
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gad_jax.core import packing
from gad_jax.core.layout import Shape, fewest_micro_batches
from gad_jax.core.packing import Given, Ragged
from gad_jax.data.chat import Chat
from gad_jax.data.epochs import PromptBatch
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import data_shards
from gad_jax.training.replay import Answers, Drawn
from gad_jax.types import PackedRows, Replay, Rollout


@dataclasses.dataclass
class Spent:
    """Seconds of the host in one iteration: packing rows, and paying extra rewards."""

    pack: float = 0.0
    reward: float = 0.0


@dataclasses.dataclass(frozen=True)
class Packer:
    """How rows are packed in all steps of a run.

    `shapes` are those of the rows so far, in the combinations in which steps took them. Packing
    prefers them, so that a run compiles few programs. `judged` is the discriminator's vocabulary,
    which may have fewer tokens without a text than the student's. `spent` is of the iteration.
    """

    mesh: Mesh
    row_tokens: int
    micro_batches: int
    shapes: set[tuple[Shape, ...]]
    judged: int
    spent: Spent = dataclasses.field(default_factory=Spent)


class StepRows:
    """The packed rows of one iteration: lays them out, copies them to the devices, counts them.

    `drawn` are the older answers that D sees, and `shown` the samples as it sees them."""

    def __init__(
        self,
        packer: Packer,
        chat: Chat,
        batch: PromptBatch,
        rollout: Rollout | None,
        drawn: Drawn | None,
    ) -> None:
        self.packer, self.batch, self.rollout, self.drawn = packer, batch, rollout, drawn
        self.chat = chat
        self.shown = [] if rollout is None else _shown(rollout, chat, packer.judged)
        self.packed: list[PackedRows] = []  # on the host, in the order in which they were packed

    def teacher(self) -> PackedRows:
        """The teacher's response to every prompt."""
        return self.alone([[response] for response in self.batch.responses])

    def alone(self, responses: Answers) -> PackedRows:
        """One response to every prompt."""
        fewest = self._fewest(responses) if self.packed else self.packer.micro_batches
        return self._pack(Given(responses, micro_batches=fewest))[0]

    def pairs(self) -> PackedRows:
        """The teacher's response and the samples of every prompt, older answers among them."""
        return self._pack(self._pairs())[0]

    def pairs_and_samples(self) -> tuple[PackedRows, PackedRows]:
        """`pairs` and `samples` for one program, whose shapes are chosen together."""
        pairs, samples = self._pack(self._pairs(), self._samples())
        return pairs, samples

    def _pairs(self) -> Given:
        samples = self.shown if self.drawn is None else self.drawn.mixed(self.shown)
        return self._groups(samples)

    def groups(self, others: Answers) -> PackedRows:
        """The teacher's response and others to every prompt."""
        return self._pack(self._groups(others))[0]

    def _groups(self, others: Answers) -> Given:
        groups = zip(self.batch.responses, others, strict=True)
        return self._given([[teacher, *rest] for teacher, rest in groups])

    def fresh(self, vocabulary: int) -> PackedRows:
        """The samples of every prompt as a reward model of this vocabulary sees them."""
        assert self.rollout is not None
        return self._pack(self._given(_shown(self.rollout, self.chat, vocabulary)))[0]

    def samples(self) -> PackedRows:
        """The samples of every prompt with the sampler's log-probabilities and thresholds."""
        return self._pack(self._samples())[0]

    def _samples(self) -> Given:
        rollout = self.rollout
        assert rollout is not None
        samples = ragged(rollout.tokens, rollout.lengths)
        logprobs, thresholds = (
            None if values is None else ragged(values, rollout.lengths)
            for values in (rollout.logprobs, rollout.thresholds)
        )
        return self._given(samples, logprobs, thresholds)

    def replay(self, *, paid: bool) -> Replay | None:
        """What a step needs to know of the older answers in the pairs; None where there are none.

        With `paid`, also the samples that they displaced, for their rewards."""
        if self.drawn is None or not self.drawn.ages:
            return None
        samples = len(self.shown[0])
        old = devices.put(self.drawn.old(samples), self.packer.mesh)
        if not paid:
            return Replay(old)
        displaced = [group[samples - self.drawn.places :] for group in self.shown]
        given = Given(displaced, micro_batches=self._fewest(displaced))
        return Replay(old, self._pack(given)[0])

    def _fewest(self, responses: Answers) -> int:
        """The fewest micro-batches that are no larger than those of the pairs, which were packed
        first: that memory is needed anyway."""
        of_pairs = self.packed[0].tokens
        prompts = self.batch.prompts
        return fewest_micro_batches(prompts, responses, of_pairs.shape[0], of_pairs[0].size)

    def metrics(self, seconds: float) -> dict[str, float]:
        """Returns the metrics of the rows and of their update, which took so many seconds; a step
        of the user's own may have packed none."""
        if not self.packed:
            return {"seconds/update": seconds}
        positions = sum(rows.tokens.size for rows in self.packed)
        padding = sum(rows.tokens.size * packing.padding_share(rows) for rows in self.packed)
        return {
            "seconds/update": seconds,
            "tokens_per_second/update": positions / seconds,
            "packing/padding": padding / positions,
        }

    def _given(
        self, responses: Ragged, logprobs: Ragged | None = None, thresholds: Ragged | None = None
    ) -> Given:
        return Given(responses, logprobs, thresholds, self.packer.micro_batches)

    def _pack(self, *given: Given) -> list[PackedRows]:
        started = time.perf_counter()
        shared = self.packer
        together = packing.pack_together(
            self.batch.prompts,
            given,
            row_tokens=shared.row_tokens,
            shards=data_shards(shared.mesh),
            known=shared.shapes,
        )
        shared.shapes.add(tuple(map(_shape, together)))
        self.packed += together
        placed = [packing.place(rows, shared.mesh) for rows in together]
        shared.spent.pack += time.perf_counter() - started
        return placed


def _shape(rows: PackedRows) -> Shape:
    count, height, length = rows.tokens.shape
    return count, height, length


def _shown(rollout: Rollout, chat: Chat, vocabulary: int) -> Answers:
    """Returns the samples of every prompt as D sees them, in its vocabulary."""
    return [
        [np.minimum(end_as_teacher(sample, chat), vocabulary - 1) for sample in group]
        for group in ragged(rollout.tokens, rollout.lengths)
    ]


def end_as_teacher(sample: np.ndarray, chat: Chat) -> np.ndarray:
    """Returns a sample whose end token is the teacher's: which of a model's several end tokens was
    drawn must not tell the discriminator who wrote the text."""
    if sample[-1] not in chat.end_tokens:
        return sample
    return np.append(sample[:-1], np.int32(chat.end_token))


def ragged(values: Any, lengths: Any) -> Ragged:
    """Returns each response's values without what lies after its end: [B N R] and [B N] → lists."""
    return [
        [row[:length] for row, length in zip(group, counts, strict=True)]
        for group, counts in zip(values, lengths, strict=True)
    ]

"""Tokens to one batch per step, in an order fixed by seed and step.

Rows become tokens in `pipeline.py`; laying a batch out in memory is in `core/packing.py`.
"""

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from gad_jax.base.errors import UserError
from gad_jax.data.pipeline import Prepared
from gad_jax.data.ragged import Tokens


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """One step's prompts, each with one teacher response; ragged.

    `indices` number the rows of `Prepared` (their text: `prepared.rows[index]`). A response ends
    with the chat's end token unless it was cut.
    """

    prompts: list[Tokens]
    responses: list[Tokens]
    indices: Int32[np.ndarray, " B"]

    def __len__(self) -> int:
        return len(self.prompts)


def batches(
    prepared: Prepared,
    *,
    prompts_per_step: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> "PromptBatches":
    """Returns the batch of each step, for one process: `batches(…)[step]`, for any step from 0 on.

    An epoch is a shuffle of all rows, cut into whole batches. No row appears twice in it, and the
    last `len(prepared) % prompts_per_step` rows of the shuffle do not appear; another shuffle ends
    with other rows. Process i takes every `process_count`-th prompt of the step's batch, from the
    i-th on. Where a row has several responses, each epoch draws one of them.

    Files that are mixed by weight are shuffled each by itself, again and again, and dealt out in
    their shares. An epoch is then as many prompts as there are rows.

    Raises UserError when there are fewer rows than prompts per step, when these do not split over
    the processes, or when the seed is out of range.
    """
    check_rows(prompts_per_step, len(prepared))
    if prompts_per_step % process_count:
        raise UserError(
            f"batch.prompts={prompts_per_step} does not split over {process_count} processes; use "
            f"a multiple of {process_count}"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be from 0 to 4294967295")
    steps = len(prepared) // prompts_per_step
    stream = _stream(prepared, steps * prompts_per_step, seed)
    # Dealt out last, so that the process count changes who gets a row and nothing else.
    stream = stream.slice(slice(process_index, None, process_count))
    stream = stream.batch(prompts_per_step // process_count, drop_remainder=True, batch_fn=list)
    return PromptBatches(prepared, stream, steps)


def check_rows(prompts_per_step: int, rows: int) -> None:
    """Raises UserError where a step cannot have so many prompts of so few rows."""
    if not 1 <= prompts_per_step <= rows:
        raise UserError(
            f"batch.prompts={prompts_per_step} does not fit {rows} rows; use 1 to {rows}, or give "
            "more rows"
        )


def _stream(prepared: Prepared, prompts_per_epoch: int, seed: int) -> Any:
    """Returns grain's endless dataset of (row, one of its responses), in the order of the epochs.

    It has no worker processes: everything is already in memory.
    """
    import grain  # imports jax, which --help must not

    class DrawResponse(grain.transforms.RandomMap):
        """Adds one of a row's responses; the generator is seeded with (seed, epoch, row)."""

        def random_map(self, element: int, rng: np.random.Generator) -> Any:
            choices = prepared.responses(element)
            return element, choices[rng.integers(len(choices)) if len(choices) > 1 else 0]

    def shuffled(rows: range, seed: int) -> Any:
        return grain.MapDataset.source(rows).seed(seed).random_map(DrawResponse()).shuffle()

    if not prepared.parts:
        stream = shuffled(range(len(prepared)), seed)
        return stream.slice(slice(prompts_per_epoch)).repeat()
    ends = np.cumsum([count for count, _ in prepared.parts]).tolist()
    files = [range(end - count, end) for end, (count, _) in zip(ends, prepared.parts, strict=True)]
    # Each file has another seed, else files of one length would have one order.
    streams = [shuffled(rows, (seed + n) % 2**32).repeat() for n, rows in enumerate(files)]
    return grain.MapDataset.mix(streams, [weight for _, weight in prepared.parts])


@dataclass(frozen=True, eq=False)
class PromptBatches:
    """The batch of each step: a pure function of seed and step, so a run resumes from its step.

    `steps_per_epoch` is the number of whole batches in one shuffle of the rows.
    """

    prepared: Prepared
    _stream: Any
    steps_per_epoch: int

    def __getitem__(self, step: int) -> PromptBatch:
        if step < 0:
            raise IndexError(f"step {step} is negative")
        drawn: list[tuple[int, Tokens]] = self._stream[operator.index(step)]
        return PromptBatch(
            prompts=[self.prepared.prompt(index) for index, _ in drawn],
            responses=[tokens for _, tokens in drawn],
            indices=np.asarray([index for index, _ in drawn], np.int32),
        )

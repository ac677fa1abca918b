"""Rows to tokens, once, and tokens to one batch per step, in an order that seed and step decide.

Laying a batch out in memory is the business of `packing`.
"""

import hashlib
import json
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.data.sources.rows import Row, Rows

_ENCODED_AT_ONCE = 1024

Tokens = Int32[np.ndarray, " _"]  # ragged: each sequence has a length of its own


@dataclass(frozen=True)
class Lengths:
    """Mean and 95th percentile of a set of sequences, in tokens."""

    mean: float
    p95: float

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> "Lengths":
        lengths = [len(sequence) for sequence in sequences]
        return cls(float(np.mean(lengths)), float(np.percentile(lengths, 95)))

    def __str__(self) -> str:
        return f"mean {self.mean:.0f}, 95 % up to {self.p95:.0f}"


@dataclass(frozen=True)
class Stats:
    """What became of the rows. Lengths are of what is kept; a response's counts its end token."""

    rows: int
    responses: int
    skipped: dict[str, int]
    dropped_long: int
    cut_responses: int
    prompt_tokens: Lengths
    response_tokens: Lengths
    unfinished: int = 0

    def __str__(self) -> str:
        skipped = "".join(f", {count} skipped ({reason})" for reason, count in self.skipped.items())
        if self.unfinished:
            skipped += f", {self.unfinished} responses left out (cut, refused or empty)"
        return (
            f"{self.rows} rows with {self.responses} responses ({self.cut_responses} cut), "
            f"{self.dropped_long} dropped for a long prompt{skipped}; prompt tokens: "
            f"{self.prompt_tokens}; response tokens: {self.response_tokens}"
        )


@dataclass(frozen=True, eq=False)
class _Ragged:
    """Sequences of tokens end to end: a fraction of the memory of one array each."""

    flat: Tokens
    starts: Int64[np.ndarray, " _"]

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> "_Ragged":
        starts = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        return cls(np.concatenate(sequences), starts)

    def __getitem__(self, index: int) -> Tokens:
        return self.flat[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """The rows that are trained on, as text and as tokens.

    `fingerprint` is a sha256 of their texts in order, and of tokenizer, template and wrapper: a run
    that resumes needs the same. It does not depend on the kind of file. `parts` are the rows and
    the weight of each file, one after the other, where files are mixed by weight.
    """

    rows: tuple[Row, ...]
    stats: Stats
    fingerprint: str
    _prompts: _Ragged
    _responses: _Ragged
    _first_response: Int64[np.ndarray, " _"]
    parts: tuple[tuple[int, float], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def prompt(self, index: int) -> Tokens:
        """Returns the prompt tokens of a row."""
        return self._prompts[index]

    def responses(self, index: int) -> list[Tokens]:
        """Returns the tokens of each of a row's teacher responses."""
        return [self._responses[n] for n in range(*self._first_response[index : index + 2])]


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """One step's prompts, each with one teacher response; ragged.

    `indices` are the rows in `Prepared` (their text: `prepared.rows[index]`). A response ends with
    the chat's end token unless it was cut.
    """

    prompts: list[Tokens]
    responses: list[Tokens]
    indices: Int32[np.ndarray, " B"]

    def __len__(self) -> int:
        return len(self.prompts)


def prepare(
    rows: Rows,
    chat: Chat,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    max_invalid_share: float = 1.0,
) -> Prepared:
    """Returns the rows with their tokens.

    A prompt that is too long is dropped and counted, never cut: a cut one would lose the header
    that opens the assistant's turn. A response is cut at the limit and then lacks the end token,
    like a student's that reached it. A row whose conversation the chat template refuses is a
    malformed row.

    Raises UserError when a row is malformed, unless `rows` was read with `skip_invalid`; when a
    row has no response; when no row remains; and when more than `max_invalid_share` of the rows
    were skipped as malformed.
    """
    kept, prompts, refused = _fitting(rows, chat, max_prompt_tokens)
    refusals = {"the chat template refuses the conversation": refused} if refused else {}
    _check_share(rows, rows.skipped | refusals, max_invalid_share)
    if not kept:
        raise UserError(
            f"{rows.name}: none of the {len(rows)} prompts has at most {max_prompt_tokens} tokens"
            f"{f' ({refused} refused by the chat template)' if refused else ''}; raise "
            "--data.max_prompt_tokens"
        )
    responses: list[Tokens] = []
    cut = 0
    for chunk in _chunks(kept):
        for tokens in chat.encode_responses([text for row in chunk for text in _texts(row)]):
            cut += len(tokens) > max_response_tokens
            responses.append(np.asarray(tokens[:max_response_tokens], np.int32))
    return Prepared(
        rows=tuple(kept),
        stats=Stats(
            rows=len(kept),
            responses=len(responses),
            skipped=rows.skipped | refusals,
            dropped_long=len(rows) - refused - len(kept),
            cut_responses=cut,
            prompt_tokens=Lengths.of(prompts),
            response_tokens=Lengths.of(responses),
            unfinished=rows.unfinished,
        ),
        fingerprint=_fingerprint(kept, chat),
        _prompts=_Ragged.of(prompts),
        _responses=_Ragged.of(responses),
        _first_response=np.cumsum([0, *(len(row.responses) for row in kept)], dtype=np.int64),
    )


def mix(files: Sequence[Prepared], weights: Sequence[float]) -> Prepared:
    """Returns the rows of several files as one set; without weights as if they were one file."""
    if len(files) == 1:
        return files[0]
    rows = tuple(row for file in files for row in file.rows)
    digest = hashlib.sha256(json.dumps([[f.fingerprint for f in files], [*weights]]).encode())
    counts = np.concatenate([np.diff(file._first_response) for file in files])
    prompts = [file.prompt(index) for file in files for index in range(len(file))]
    responses = [r for file in files for index in range(len(file)) for r in file.responses(index)]
    return Prepared(
        rows=rows,
        stats=Stats(
            rows=len(rows),
            responses=len(responses),
            skipped=dict(sum((Counter(file.stats.skipped) for file in files), Counter())),
            dropped_long=sum(file.stats.dropped_long for file in files),
            cut_responses=sum(file.stats.cut_responses for file in files),
            prompt_tokens=Lengths.of(prompts),
            response_tokens=Lengths.of(responses),
            unfinished=sum(file.stats.unfinished for file in files),
        ),
        fingerprint=digest.hexdigest(),
        _prompts=_Ragged.of(prompts),
        _responses=_Ragged.of(responses),
        _first_response=np.cumsum([0, *counts], dtype=np.int64),
        parts=tuple(zip(map(len, files), weights, strict=True)) if weights else (),
    )


def _check_share(rows: Rows, skipped: dict[str, int], limit: float) -> None:
    count, invalid = len(rows) + sum(rows.skipped.values()), sum(skipped.values())
    if invalid > limit * count:
        reasons = "; ".join(f"{number}: {reason}" for reason, number in skipped.items())
        raise UserError(
            f"{rows.name}: {invalid} of {count} rows are malformed ({reasons}), more than "
            f"--data.max_invalid_share={limit:g}; mend the file or raise that"
        )


def batches(
    prepared: Prepared,
    *,
    prompts_per_step: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> "PromptBatches":
    """Returns the batch of each step, for one process; `batches(…)[step]` for any step from 0 on.

    An epoch is a shuffle of all rows, cut into whole batches: in it no row appears twice, and the
    last `len(prepared) % prompts_per_step` rows of the shuffle do not appear; the next epoch's
    shuffle ends with others. Process i takes every `process_count`-th prompt of the step's batch
    from the i-th on. Where a row has several responses, each epoch draws one of them.

    Files that are mixed by weight are shuffled each by itself, over and over, and dealt out in
    their shares; an epoch is then as many prompts as there are rows.

    Raises UserError when there are fewer rows than prompts per step, or when these do not split
    over the processes.
    """
    if not 1 <= prompts_per_step <= len(prepared):
        raise UserError(
            f"batch.prompts={prompts_per_step} does not fit {len(prepared)} rows; use "
            f"1 to {len(prepared)}, or give more rows"
        )
    if prompts_per_step % process_count:
        raise UserError(
            f"batch.prompts={prompts_per_step} does not split over {process_count} processes; use "
            f"a multiple of {process_count}"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be from 0 to 4294967295")
    import grain  # imports jax, which --help must not

    class DrawResponse(grain.transforms.RandomMap):
        """Adds one of a row's responses; the generator is seeded with (seed, epoch, row)."""

        def random_map(self, element: int, rng: np.random.Generator) -> Any:
            choices = prepared.responses(element)
            return element, choices[rng.integers(len(choices)) if len(choices) > 1 else 0]

    # Dealt out last, so that the process count changes who gets a row and nothing else. No worker
    # processes: everything is already in memory.
    steps = len(prepared) // prompts_per_step

    def shuffled(rows: range, seed: int) -> Any:
        return grain.MapDataset.source(rows).seed(seed).random_map(DrawResponse()).shuffle()

    if prepared.parts:
        ends = np.cumsum([count for count, _ in prepared.parts]).tolist()
        files = [
            range(end - count, end) for end, (count, _) in zip(ends, prepared.parts, strict=True)
        ]
        streams = [shuffled(rows, (seed + n) % 2**32).repeat() for n, rows in enumerate(files)]
        stream = grain.MapDataset.mix(streams, [weight for _, weight in prepared.parts])
    else:
        stream = shuffled(range(len(prepared)), seed)
        stream = stream.slice(slice(steps * prompts_per_step)).repeat()
    stream = stream.slice(slice(process_index, None, process_count))
    stream = stream.batch(prompts_per_step // process_count, drop_remainder=True, batch_fn=list)
    return PromptBatches(prepared, stream, steps)


@dataclass(frozen=True, eq=False)
class PromptBatches:
    """The batch of each step: a pure function of seed and step, so resuming needs the step only.

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


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), _ENCODED_AT_ONCE):
        yield rows[start : start + _ENCODED_AT_ONCE]


def _fitting(rows: Rows, chat: Chat, max_prompt_tokens: int) -> tuple[list[Row], list[Tokens], int]:
    """Returns the rows whose prompts fit, their tokens, and how many the template refused."""
    kept: list[Row] = []
    prompts: list[Tokens] = []
    refused = 0
    for chunk in _chunks(rows.rows):
        for row, tokens in zip(chunk, _encode_prompts(chunk, chat, rows.skip_invalid), strict=True):
            if tokens is None:
                refused += 1
            elif len(tokens) <= max_prompt_tokens:
                kept.append(row)
                prompts.append(np.asarray(tokens, np.int32))
    return kept, prompts, refused


def _encode_prompts(rows: Sequence[Row], chat: Chat, skip_invalid: bool) -> list[list[int] | None]:
    """Returns the tokens of each row's prompt; None for one that is refused and may be skipped."""
    try:
        return list(chat.encode_prompts([row.messages for row in rows]))
    except UserError as error:
        if len(rows) > 1:  # find the row
            return [tokens for row in rows for tokens in _encode_prompts([row], chat, skip_invalid)]
        if skip_invalid:
            return [None]
        raise UserError(f"{rows[0].id}: {error}, or pass --data.skip_invalid") from error


def _texts(row: Row) -> tuple[str, ...]:
    if not row.responses:
        raise UserError(f"{row.id}: no teacher response; collect one or drop the row")
    return row.responses


def _fingerprint(rows: Sequence[Row], chat: Chat) -> str:
    digest = hashlib.sha256(chat.fingerprint.encode())
    for row in rows:
        line = json.dumps([row.messages, row.responses], sort_keys=True)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()

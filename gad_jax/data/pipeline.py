"""Rows to tokens, once, when a run starts.

Reading and checking rows is in `sources`, drawing one batch per step in `epochs.py`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.data.sources.rows import Row, Rows

_ENCODED_AT_ONCE = 1024  # rows per tokenizer call, which bounds the memory of its lists

Tokens = Int32[np.ndarray, " _"]  # ragged: sequences differ in length


@dataclass(frozen=True)
class Lengths:
    """Mean and 95th percentile of a set of sequences, in tokens."""

    mean: float
    p95: float

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> "Lengths":
        """Returns the statistics of these sequences."""
        lengths = [len(sequence) for sequence in sequences]
        return cls(float(np.mean(lengths)), float(np.percentile(lengths, 95)))

    def __str__(self) -> str:
        return f"mean {self.mean:.0f}, 95 % up to {self.p95:.0f}"


@dataclass(frozen=True)
class Stats:
    """How many rows were kept, skipped and dropped.

    Lengths are those of what is kept. A response's length counts its end token.
    """

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
    """Sequences of tokens end to end: an array per sequence would take several times the memory."""

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

    `fingerprint` is a sha256 of their texts in order, and of tokenizer, template and wrapper. A run
    resumes only with the same fingerprint. It does not depend on the kind of file. `parts` are
    (number of rows, weight) of each file, in the order of the rows, if files are mixed by weight.
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


def prepare(
    rows: Rows,
    chat: Chat,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    max_invalid_share: float = 1.0,
) -> Prepared:
    """Returns the rows with their tokens.

    A prompt that is too long is dropped and counted. It is never cut, because it would lose the
    header that opens the assistant's turn. A response is cut at the limit and then has no end
    token, like a student's response that reached it. Nor has a response that is not complete. A row
    is malformed if the chat template refuses its conversation.

    Raises UserError when a row is malformed, unless `rows` was read with `skip_invalid`; when a
    row has no response; when no row remains; and when more than `max_invalid_share` of the rows
    were skipped as malformed.
    """
    kept, prompts, refused = _fitting_prompts(rows, chat, max_prompt_tokens)
    refusals = {"the chat template refuses the conversation": refused} if refused else {}
    _check_share(rows, rows.skipped | refusals, max_invalid_share)
    if not kept:
        raise UserError(
            f"{rows.name}: none of the {len(rows)} prompts has at most {max_prompt_tokens} tokens"
            f"{f' ({refused} refused by the chat template)' if refused else ''}; raise "
            "--data.max_prompt_tokens"
        )
    responses, cut = _cut_responses(kept, chat, max_response_tokens)
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
    """Returns the rows of several files as one set; with no weights as if they were one file."""
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
            f"--data.max_invalid_share={limit:g}; correct the file or raise that"
        )


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), _ENCODED_AT_ONCE):
        yield rows[start : start + _ENCODED_AT_ONCE]


def _fitting_prompts(
    rows: Rows, chat: Chat, max_prompt_tokens: int
) -> tuple[list[Row], list[Tokens], int]:
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


def _cut_responses(
    rows: Sequence[Row], chat: Chat, max_response_tokens: int
) -> tuple[list[Tokens], int]:
    """Returns the tokens of all responses, cut at the limit, and how many were cut."""
    responses: list[Tokens] = []
    cut = 0
    for chunk in _chunks(rows):
        encoded = chat.encode_responses([text for row in chunk for text in _teacher_responses(row)])
        ends = [complete for row in chunk for complete in row.complete]
        for tokens, complete in zip(encoded, ends, strict=True):
            # A reply that its server cut has no end, as a student's that reaches the limit.
            tokens = tokens if complete else tokens[:-1]
            cut += len(tokens) > max_response_tokens
            responses.append(np.asarray(tokens[:max_response_tokens], np.int32))
    return responses, cut


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


def _teacher_responses(row: Row) -> tuple[str, ...]:
    if not row.responses:
        raise UserError(f"{row.id}: no teacher response; collect one or drop the row")
    return row.responses


def _fingerprint(rows: Sequence[Row], chat: Chat) -> str:
    digest = hashlib.sha256(chat.fingerprint.encode())
    for row in rows:
        content = [row.messages, row.responses]
        content += [] if all(row.complete) else [row.complete]
        line = json.dumps(content, sort_keys=True)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()

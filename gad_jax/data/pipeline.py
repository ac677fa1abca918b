"""Rows to tokens, once, when a run starts.

Reading and checking rows is in `sources`, the limits of a run in `limits.py`, held-out rows in
`split.py`, drawing one batch per step in `epochs.py`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gad_jax.base.errors import UserError
from gad_jax.data import teacher_thoughts
from gad_jax.data.chat import Chat
from gad_jax.data.ragged import Groups, Ragged, Tokens
from gad_jax.data.sources.rows import Row, Rows

_ENCODED_AT_ONCE = 1024  # rows per tokenizer call, which bounds the memory of its lists


@dataclass(frozen=True)
class Lengths:
    """Mean and 95th percentile of a set of sequences, in tokens."""

    mean: float
    p95: float

    @classmethod
    def of(cls, sequences: Ragged) -> "Lengths":
        """Returns the statistics of these sequences."""
        lengths = sequences.lengths
        return cls(float(np.mean(lengths)), float(np.percentile(lengths, 95)))

    def __str__(self) -> str:
        return f"mean {self.mean:.0f}, 95 % up to {self.p95:.0f}"


@dataclass(frozen=True)
class Stats:
    """How many rows were kept, skipped and dropped.

    Lengths are those of what is kept. A response's length counts its end token. `thoughts` counts
    the responses that came with thoughts, dropped or not.
    """

    rows: int
    responses: int
    prompt_tokens: Lengths
    response_tokens: Lengths
    skipped: dict[str, int] = field(default_factory=dict)
    dropped_long: int = 0
    cut_responses: int = 0
    unfinished: int = 0
    thoughts: int = 0

    @classmethod
    def of(cls, rows: Sequence[Row], prompts: Ragged, responses: Ragged) -> "Stats":
        """Returns the statistics of rows of which none was skipped, dropped or cut."""
        return cls(len(rows), len(responses), Lengths.of(prompts), Lengths.of(responses))

    def __str__(self) -> str:
        skipped = "".join(f", {count} skipped ({reason})" for reason, count in self.skipped.items())
        if self.unfinished:
            skipped += f", {self.unfinished} responses left out (cut, refused or empty)"
        if self.thoughts:
            skipped += f", {self.thoughts} responses had thoughts (--data.thoughts)"
        return (
            f"{self.rows} rows with {self.responses} responses ({self.cut_responses} cut), "
            f"{self.dropped_long} dropped for a long prompt{skipped}; prompt tokens: "
            f"{self.prompt_tokens}; response tokens: {self.response_tokens}"
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """The rows that are trained on, as text and as tokens.

    `fingerprint` is a sha256 of their texts in order, and of tokenizer, template and wrapper. A run
    resumes only with the same fingerprint. It does not depend on the kind of file. `parts` are
    (number of rows, weight) of each file, in the order of the rows, if files are mixed by weight.
    """

    name: str
    rows: tuple[Row, ...]
    stats: Stats
    fingerprint: str
    _prompts: Ragged
    _responses: Groups
    _rejected: Groups
    _chat: str
    parts: tuple[tuple[int, float], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def prompt(self, index: int) -> Tokens:
        """Returns the prompt tokens of a row."""
        return self._prompts[index]

    def responses(self, index: int) -> list[Tokens]:
        """Returns the tokens of each of a row's teacher responses."""
        return self._responses[index]

    def rejected(self, index: int) -> list[Tokens]:
        """Returns the tokens of each of a row's rejected answers."""
        return self._rejected[index]

    def select(self, which: Sequence[int]) -> "Prepared":
        """Returns the rows of these numbers, which must be one or more, in this order.

        What was skipped and dropped before is in the statistics of the whole set alone.
        """
        rows = tuple(self.rows[index] for index in which)
        places = np.asarray(which, np.int64)
        prompts, responses = self._prompts.take(places), self._responses.take(places)
        return Prepared(
            name=self.name,
            rows=rows,
            stats=Stats.of(rows, prompts, responses.sequences),
            fingerprint=_fingerprint(rows, self._chat),
            _prompts=prompts,
            _responses=responses,
            _rejected=self._rejected.take(places),
            _chat=self._chat,
        )


@dataclass(frozen=True, eq=False)
class Encoded:
    """Rows with all of their tokens, before the limits of a run are known.

    `refused` counts the rows that the chat template refused; they are left out. `rejected` are the
    tokens of the rejected answers, as many as the rows have.
    """

    source: Rows
    rows: tuple[Row, ...]
    refused: int
    prompts: Ragged
    responses: Ragged
    _chat: str
    thoughts: int = 0
    rejected: Ragged = field(default_factory=lambda: Ragged.of([]))

    def limited(self, max_prompt_tokens: int, max_response_tokens: int) -> Prepared:
        """Returns the rows whose prompts fit, with their answers cut at the limit.

        Raises UserError when no row remains.
        """
        fits = self.prompts.lengths <= max_prompt_tokens
        if not fits.any():
            raise UserError(
                f"{self.source.name}: none of the {len(self.source)} prompts has at most "
                f"{max_prompt_tokens} tokens"
                f"{f' ({self.refused} refused by the chat template)' if self.refused else ''}; "
                "raise --data.max_prompt_tokens"
            )
        places = np.flatnonzero(fits)
        kept = tuple(self.rows[index] for index in places)
        prompts = self.prompts.take(fits)
        whole = Groups.of(self.responses, [len(row.responses) for row in self.rows]).take(places)
        rejected = Groups.of(self.rejected, [len(row.rejected) for row in self.rows]).take(places)
        responses = whole.cut(max_response_tokens)
        return Prepared(
            name=self.source.name,
            rows=kept,
            stats=replace(
                Stats.of(kept, prompts, responses.sequences),
                skipped=_skipped(self.source, self.refused),
                dropped_long=len(self.rows) - len(kept),
                cut_responses=int(np.sum(whole.sequences.lengths > max_response_tokens)),
                unfinished=self.source.unfinished,
                thoughts=self.thoughts,
            ),
            fingerprint=_fingerprint(kept, self._chat),
            _prompts=prompts,
            _responses=responses,
            _rejected=rejected.cut(max_response_tokens),
            _chat=self._chat,
        )


def encode(
    rows: Rows, chat: Chat, max_invalid_share: float = 1.0, drop_thoughts: bool = True
) -> Encoded:
    """Returns the rows with their tokens.

    Thoughts of the teacher are dropped with `drop_thoughts`, and counted either way. A row is
    malformed if the chat template refuses its conversation. Raises UserError when a row is
    malformed, unless `rows` was read with `skip_invalid`; when a row has no response; and when more
    than `max_invalid_share` of the rows were skipped as malformed.
    """
    rows, thinking = teacher_thoughts.part(rows, drop_thoughts, chat.turn.closed)
    kept: list[Row] = []
    prompts: list[Ragged] = []
    for chunk in _chunks(rows.rows):
        encoded = _encode_prompts(chunk, chat, rows.skip_invalid)
        kept += [row for row, tokens in zip(chunk, encoded, strict=True) if tokens is not None]
        prompts.append(Ragged.of([tokens for tokens in encoded if tokens is not None]))
    refused = len(rows) - len(kept)
    _check_share(rows, _skipped(rows, refused), max_invalid_share)
    responses = [Ragged.of(_encode_responses(chunk, chat)) for chunk in _chunks(kept)]
    rejected = [
        Ragged.of(list(chat.encode_responses([text for row in chunk for text in row.rejected])))
        for chunk in _chunks(kept)
    ]
    together = Ragged.joined(prompts), Ragged.joined(responses)
    about = chat.fingerprint, thinking, Ragged.joined(rejected)
    return Encoded(rows, tuple(kept), refused, *together, *about)


def prepare(
    rows: Rows,
    chat: Chat,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    max_invalid_share: float = 1.0,
    drop_thoughts: bool = True,
) -> Prepared:
    """Returns the rows with their tokens, within these limits.

    A prompt that is too long is dropped and counted. It is never cut, because it would lose the
    header that opens the assistant's turn. A response is cut at the limit and then has no end
    token, like a student's response that reached it; nor has one that is not complete. Raises what
    `encode` and `Encoded.limited` do.
    """
    encoded = encode(rows, chat, max_invalid_share, drop_thoughts)
    return encoded.limited(max_prompt_tokens, max_response_tokens)


def mix(files: Sequence[Prepared], weights: Sequence[float]) -> Prepared:
    """Returns the rows of several files as one set; with no weights as if they were one file."""
    if len(files) == 1:
        return files[0]
    rows = tuple(row for file in files for row in file.rows)
    digest = hashlib.sha256(json.dumps([[f.fingerprint for f in files], [*weights]]).encode())
    prompts = Ragged.joined([file._prompts for file in files])
    responses = Groups.joined([file._responses for file in files])
    return Prepared(
        name=",".join(file.name for file in files),
        rows=rows,
        stats=replace(
            Stats.of(rows, prompts, responses.sequences),
            skipped=dict(sum((Counter(file.stats.skipped) for file in files), Counter())),
            dropped_long=sum(file.stats.dropped_long for file in files),
            cut_responses=sum(file.stats.cut_responses for file in files),
            unfinished=sum(file.stats.unfinished for file in files),
            thoughts=sum(file.stats.thoughts for file in files),
        ),
        fingerprint=digest.hexdigest(),
        _prompts=prompts,
        _responses=responses,
        _rejected=Groups.joined([file._rejected for file in files]),
        _chat=files[0]._chat,
        parts=tuple(zip(map(len, files), weights, strict=True)) if weights else (),
    )


def _skipped(rows: Rows, refused: int) -> dict[str, int]:
    """Returns how many rows were skipped for which reason."""
    refusals = {"the chat template refuses the conversation": refused} if refused else {}
    return rows.skipped | refusals


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


def _encode_responses(rows: Sequence[Row], chat: Chat) -> list[list[int]]:
    """Returns the tokens of all responses; one that its server cut has no end token."""
    encoded = chat.encode_responses([text for row in rows for text in _teacher_responses(row)])
    ends = [complete for row in rows for complete in row.complete]
    return [x if complete else x[:-1] for x, complete in zip(encoded, ends, strict=True)]


def _teacher_responses(row: Row) -> tuple[str, ...]:
    if not row.responses:
        raise UserError(f"{row.id}: no teacher response; collect one or drop the row")
    return row.responses


def _fingerprint(rows: Sequence[Row], chat: str) -> str:
    """Returns the sha256 of rows and of the chat's fingerprint."""
    digest = hashlib.sha256(chat.encode())
    for row in rows:
        content = [row.messages, row.responses]
        content += [] if all(row.complete) else [row.complete]
        content += [{"rejected": row.rejected}] if row.rejected else []
        line = json.dumps(content, sort_keys=True)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()

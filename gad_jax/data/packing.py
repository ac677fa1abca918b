"""Ragged responses → rows of one length with segment ids. On the host, in numpy.

The responses of a prompt share one copy of it in a row. The prompt's segment is all but its last
token; each response's segment starts with a copy of that last token, so that everywhere in a row
the next token is the one to predict. A group that does not fit into one row continues in another,
with the prompt repeated.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from gad_jax import buckets, sharding
from gad_jax.types import Rows, Segments

LENGTHS = 8
"""A step's rows have a multiple of 1/8 of the longest length: few lengths are ever compiled."""


class _Piece(NamedTuple):
    """A prompt with some of its responses: what must lie in one row."""

    group: int
    members: list[int]
    length: int


def pack(
    prompts: list[np.ndarray],
    responses: list[list[np.ndarray]],
    logprobs: list[list[np.ndarray]] | None = None,
    *,
    row_tokens: int,
    micro_batches: int = 1,
    shards: int = 1,
) -> Rows:
    """Returns the responses of every prompt packed into `micro_batches` of whole groups.

    `logprobs` are the sampler's, one for each token of each response; None for a teacher's.
    Every prompt has the same number of responses, and every micro-batch the same number of
    prompts and of rows: a bucket, and a multiple of `shards`. `row_tokens` is the longest row and
    must hold the longest prompt and response together.

    Example: prompt [7 8], responses [[5 2] [6]], row_tokens = 32 → one row of 8 (4, 8, .. 32 are
    tried), tokens [7 8 5 2 8 6 0 0],
    positions [0 1 2 3 1 2 0 0], own [1 2 2 2 3 3 0 0], prefix [1 1 1 1 1 1 0 0],
    targets [0 5 2 0 6 0 0 0], ends [(0 3) (0 5)].
    """
    assert len(prompts) % micro_batches == 0, (len(prompts), micro_batches)
    micro = _balance(prompts, responses, micro_batches)
    length, layouts = _cheapest(micro, prompts, responses, row_tokens, shards)
    rows = buckets.round_up(max(len(layout) for layout in layouts), shards)
    packed = _empty(micro, rows, length, len(responses[0]))
    for number, (groups, layout) in enumerate(zip(micro, layouts, strict=True)):
        for row, pieces in enumerate(layout):
            _fill_row(packed, number, row, pieces, groups, prompts, responses, logprobs)
    return packed


def place(rows: Rows, mesh: jax.sharding.Mesh) -> Rows:
    """Copies packed rows to the devices: rows split over the data shards, indices everywhere."""
    indices = {name: getattr(rows, name) for name in ("ends", "groups")}
    placed = sharding.put(rows._replace(ends=None, groups=None), mesh, None, "batch")
    return placed._replace(**sharding.put(indices, mesh))


def padding_share(rows: Rows) -> float:
    """Returns the share of the processed positions that are padding."""
    return float(np.mean(np.asarray(rows.segments.own) == 0))


def _lengths(group: int, prompts: list[np.ndarray], responses: list[list[np.ndarray]]) -> int:
    return len(prompts[group]) - 1 + sum(len(r) + 1 for r in responses[group])


def _balance(
    prompts: list[np.ndarray], responses: list[list[np.ndarray]], micro_batches: int
) -> list[list[int]]:
    """Deals the groups to micro-batches of equal size, the longest first, to the emptiest."""
    per_batch = len(prompts) // micro_batches
    dealt: list[list[int]] = [[] for _ in range(micro_batches)]
    loads = [0] * micro_batches
    lengths = [_lengths(g, prompts, responses) for g in range(len(prompts))]
    for group in sorted(range(len(prompts)), key=lambda g: -lengths[g]):
        open_batches = [m for m in range(micro_batches) if len(dealt[m]) < per_batch]
        target = min(open_batches, key=lambda m: loads[m])
        dealt[target].append(group)
        loads[target] += lengths[group]
    return [sorted(groups) for groups in dealt]


def _pieces(
    group: int, prompts: list[np.ndarray], responses: list[list[np.ndarray]], row_tokens: int
) -> list[_Piece]:
    shared = len(prompts[group]) - 1
    pieces: list[_Piece] = []
    for member, response in enumerate(responses[group]):
        own = len(response) + 1
        assert shared + own <= row_tokens, (shared, own, row_tokens)
        if pieces and pieces[-1].length + own <= row_tokens:
            last = pieces.pop()
            pieces.append(_Piece(group, [*last.members, member], last.length + own))
        else:
            pieces.append(_Piece(group, [member], shared + own))
    return pieces


def _cheapest(
    micro: list[list[int]],
    prompts: list[np.ndarray],
    responses: list[list[np.ndarray]],
    row_tokens: int,
    shards: int,
) -> tuple[int, list[list[list[_Piece]]]]:
    """Returns the row length, of LENGTHS shares of `row_tokens`, that leaves the fewest positions
    to process, and the layout of every micro-batch."""
    best: tuple[int, int, list[list[list[_Piece]]]] | None = None
    longest = max(
        len(p) + len(r) for p, group in zip(prompts, responses, strict=True) for r in group
    )
    for share in range(LENGTHS, 0, -1):
        length = row_tokens * share // LENGTHS
        if length < longest:
            break
        layouts = [
            _first_fit([p for g in groups for p in _pieces(g, prompts, responses, length)], length)
            for groups in micro
        ]
        rows = buckets.round_up(max(len(layout) for layout in layouts), shards)
        if best is None or rows * length < best[0]:
            best = rows * length, length, layouts
    assert best is not None, (longest, row_tokens)
    return best[1], best[2]


def _first_fit(pieces: list[_Piece], row_tokens: int) -> list[list[_Piece]]:
    """Places pieces into rows, the longest first, each into the first row with room."""
    rows: list[list[_Piece]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=lambda p: -p.length):
        row = next((row for row, free in enumerate(room) if piece.length <= free), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[row].append(piece)
        room[row] -= piece.length
    return rows


def _empty(micro: list[list[int]], rows: int, row_tokens: int, members: int) -> Rows:
    def zeros(dtype: Any = np.int32) -> Any:  # the fields are typed as device arrays
        return np.zeros((len(micro), rows, row_tokens), dtype)

    ends: Any = np.zeros((len(micro), len(micro[0]), members, 2), np.int32)
    groups: Any = np.asarray(micro, np.int32)

    return Rows(
        tokens=zeros(),
        positions=zeros(),
        segments=Segments(zeros(), zeros()),
        targets=zeros(),
        mask=zeros(np.bool_),
        sequences=zeros(),
        sampled_logprobs=zeros(np.float32),
        ends=ends,
        groups=groups,
    )


def _fill_row(
    packed: Any,
    number: int,
    row: int,
    pieces: list[_Piece],
    groups: list[int],
    prompts: list[np.ndarray],
    responses: list[list[np.ndarray]],
    logprobs: list[list[np.ndarray]] | None,
) -> None:
    cursor, segment = 0, 0
    for piece in pieces:
        prompt = prompts[piece.group]
        shared = len(prompt) - 1
        segment += 1
        prefix = segment
        span = (number, row, slice(cursor, cursor + shared))
        packed.tokens[span] = prompt[:-1]
        packed.positions[span] = np.arange(shared)
        packed.segments.own[span] = packed.segments.prefix[span] = prefix
        cursor += shared
        for member in piece.members:
            response = responses[piece.group][member]
            segment += 1
            length = len(response) + 1
            span = (number, row, slice(cursor, cursor + length))
            packed.tokens[span] = [prompt[-1], *response]
            packed.positions[span] = np.arange(shared, shared + length)
            packed.segments.own[span] = segment
            packed.segments.prefix[span] = prefix
            scored = (number, row, slice(cursor, cursor + length - 1))
            packed.targets[scored] = response
            packed.mask[scored] = True
            packed.sequences[scored] = piece.group * len(responses[0]) + member
            if logprobs is not None:
                packed.sampled_logprobs[scored] = logprobs[piece.group][member]
            cursor += length
            packed.ends[number, groups.index(piece.group), member] = (row, cursor - 1)

"""Ragged responses → rows of one length with segment ids. On the host, in numpy.

The responses of a prompt share one copy of it in a row. The prompt's segment is all but its last
token; each response's segment starts with a copy of that last token, so that everywhere in a row
the next token is the one to predict. A row is filled to its end: the group that no longer fits
goes on in the next row, with the prompt repeated.

Shapes come from declared buckets of row lengths and row counts. One that the run has used before
is used again where it costs little more, so that the programs of a run are soon all compiled.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gad_jax.base import buckets
from gad_jax.distributed import sharding
from gad_jax.types import Rows, Segments

HEADROOM = 1.08
"""A new shape has room for this multiple of the tokens that asked for it: the next steps, whose
responses differ by a few percent, find it large enough."""
REUSE = 1.15
"""A shape that was used before is taken again if it has at most this multiple of the positions of
the cheapest."""
ROW_PARTS = 8
"""Row counts are (8 … 15) × a power of two, times the data shards."""

Shape = tuple[int, int, int]
"""Micro-batches, rows of each, length of a row."""


class _Sizes(NamedTuple):
    """Tokens of a group: those of the shared prompt, and those of each response's segment."""

    shared: int
    own: list[int]

    @property
    def total(self) -> int:
        return self.shared + sum(self.own)


class _Piece(NamedTuple):
    """A prompt with some of its responses, in one row."""

    group: int
    members: list[int]


_Layout = list[list[_Piece]]


def pack(
    prompts: list[np.ndarray],
    responses: list[list[np.ndarray]],
    logprobs: list[list[np.ndarray]] | None = None,
    *,
    row_tokens: int,
    micro_batches: int = 1,
    shards: int = 1,
    known: Iterable[Shape] = (),
) -> Rows:
    """Returns the responses of every prompt packed into `micro_batches` of whole groups.

    `logprobs` are the sampler's, one for each token of each response; None for a teacher's.
    Every prompt has the same number of responses, and every micro-batch the same number of
    prompts and of rows, a multiple of `shards`. `row_tokens` is the usual length of a row, and must
    hold the longest prompt and response together; the length used is a bucket of at most half as
    much again. `known` are shapes to prefer: those that the run has used.

    Example: prompt [7 8], responses [[5 2] [6]], row_tokens = 32 → one row of 8 (4, 8, .. 48 are
    tried), tokens [7 8 5 2 8 6 0 0],
    positions [0 1 2 3 1 2 0 0], own [1 2 2 2 3 3 0 0], prefix [1 1 1 1 1 1 0 0],
    targets [0 5 2 0 6 0 0 0], ends [(0 3) (0 5)].
    """
    assert len(prompts) % micro_batches == 0, (len(prompts), micro_batches)
    sizes = _sizes(prompts, responses)
    micro = _balance(sizes, micro_batches)
    rows, length, layouts = _choose(sizes, micro, row_tokens, shards, known)
    packed = _empty(micro, rows, length, len(responses[0]))
    for number, (groups, layout) in enumerate(zip(micro, layouts, strict=True)):
        for row, pieces in enumerate(layout):
            _fill_row(packed, number, row, pieces, groups, prompts, responses, logprobs)
    return packed


def fewest_micro_batches(
    prompts: list[np.ndarray], responses: list[list[np.ndarray]], at_most: int, positions: int
) -> int:
    """Returns the least divisor of `at_most` whose micro-batches fit into `positions` each."""
    sizes = _sizes(prompts, responses)
    for count in (n for n in range(1, at_most) if at_most % n == 0):
        loads = (sum(sizes[g].total for g in groups) for groups in _balance(sizes, count))
        if HEADROOM * max(loads) <= positions:
            return count
    return at_most


def place(rows: Rows, mesh: jax.sharding.Mesh) -> Rows:
    """Copies packed rows to the devices: rows split over the data shards, indices everywhere."""
    indices = {name: getattr(rows, name) for name in ("ends", "groups")}
    placed = sharding.put(rows._replace(ends=None, groups=None), mesh, None, "batch")
    return placed._replace(**sharding.put(indices, mesh))


def abstract(rows: Rows, mesh: jax.sharding.Mesh) -> Rows:
    """Returns the shapes and shardings of what `place` returns, and copies nothing."""

    def one(leaf: Any, *logical: str | None) -> jax.ShapeDtypeStruct:
        axes = (*logical, *(None,) * (leaf.ndim - len(logical)))
        where = jax.sharding.NamedSharding(mesh, sharding.mesh_spec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    split = jax.tree.map(lambda x: one(x, None, "batch"), rows._replace(ends=None, groups=None))
    return split._replace(ends=one(rows.ends), groups=one(rows.groups))


def padding_share(rows: Rows) -> float:
    """Returns the share of the processed positions that hold no token.

    A prompt that is repeated because its group goes on in another row counts as tokens.
    """
    return float(np.mean(np.asarray(rows.segments.own) == 0))


def rectangle_padding_share(
    prompts: Sequence[np.ndarray], responses: Sequence[Sequence[np.ndarray]]
) -> float:
    """Returns the share that would be padding with one row per response, [longest prompt | longest
    response], as RL frameworks lay a batch out. Prompts are tokens there in every row."""
    pairs = [(len(p), len(r)) for p, group in zip(prompts, responses, strict=True) for r in group]
    longest = max(p for p, _ in pairs) + max(r for _, r in pairs)
    return 1 - sum(p + r for p, r in pairs) / (len(pairs) * longest)


def _sizes(prompts: list[np.ndarray], responses: list[list[np.ndarray]]) -> list[_Sizes]:
    return [
        _Sizes(len(prompt) - 1, [len(response) + 1 for response in group])
        for prompt, group in zip(prompts, responses, strict=True)
    ]


def _balance(sizes: list[_Sizes], micro_batches: int) -> list[list[int]]:
    """Deals the groups to micro-batches of equal size, the longest first, to the emptiest."""
    per_batch = len(sizes) // micro_batches
    dealt: list[list[int]] = [[] for _ in range(micro_batches)]
    loads = [0] * micro_batches
    for group in sorted(range(len(sizes)), key=lambda g: -sizes[g].total):
        open_batches = [m for m in range(micro_batches) if len(dealt[m]) < per_batch]
        target = min(open_batches, key=lambda m: loads[m])
        dealt[target].append(group)
        loads[target] += sizes[group].total
    return [sorted(groups) for groups in dealt]


def _choose(
    sizes: list[_Sizes],
    micro: list[list[int]],
    row_tokens: int,
    shards: int,
    known: Iterable[Shape],
) -> tuple[int, int, list[_Layout]]:
    """Returns rows and length of a micro-batch with the fewest positions, or a known shape that
    has few more, and the layout of every micro-batch."""
    longest = max(size.shared + max(size.own) for size in sizes)
    assert longest <= row_tokens, (longest, row_tokens)
    load = max(sum(sizes[g].total for g in groups) for groups in micro)

    def lay_out(length: int) -> tuple[int, list[_Layout]]:
        layouts = [_lay_out({g: sizes[g] for g in groups}, length) for groups in micro]
        return max(map(len, layouts)), layouts

    def count(rows: int) -> int:
        return buckets.round_up(rows, shards, ROW_PARTS)

    best: tuple[int, int, list[_Layout]] | None = None
    candidates = [(count(-(-int(HEADROOM * load) // n)), n) for n in _lengths(longest, row_tokens)]
    for rows, length in sorted(candidates, key=lambda c: (c[0] * c[1], abs(c[1] - row_tokens))):
        if best is not None and rows * length >= best[0] * best[1]:
            break
        needed, layouts = lay_out(length)
        rows = max(rows, count(needed))
        if best is None or rows * length < best[0] * best[1]:
            best = rows, length, layouts
    assert best is not None
    for micro_batches, rows, length in sorted(set(known), key=lambda s: (s[1] * s[2], s)):
        affordable = rows * length <= REUSE * best[0] * best[1]
        if micro_batches == len(micro) and rows % shards == 0 and length >= longest and affordable:
            needed, layouts = lay_out(length)
            if needed <= rows:
                return rows, length, layouts
    return best


def _lengths(longest: int, row_tokens: int) -> range:
    """Returns the row lengths to try: multiples of about a sixteenth of `row_tokens`.

    Kernels want multiples of 128; short rows have eighths.
    """
    unit = -(-row_tokens // 16 // 128) * 128 if row_tokens >= 1024 else max(row_tokens // 8, 1)
    first = -(-longest // unit) * unit
    return range(first, max(row_tokens * 3 // 2, first) + 1, unit)


def _lay_out(groups: dict[int, _Sizes], row_tokens: int) -> _Layout:
    """Fills rows one by one: first with what is left of the group that the last row cut, then with
    others, the longest first. A group is cut only where that fills much of the room left."""
    order = sorted(groups, key=lambda g: -groups[g].total)
    left = {
        g: sorted(range(len(groups[g].own)), key=lambda m: -groups[g].own[m])  # the longest first
        for g in order
    }
    cut: list[int] = []
    rows: _Layout = []
    while left:
        room = row_tokens
        rows.append([])
        for group in [*cut, *(g for g in left if g not in cut)]:
            shared, own = groups[group]
            taken, space = [], room - shared
            for member in left[group]:
                if own[member] <= space:
                    taken.append(member)
                    space -= own[member]
            whole = len(taken) == len(left[group])
            worth = whole or not rows[-1] or group in cut or room - shared - space >= 4 * shared
            if not taken or not worth:
                continue
            rows[-1].append(_Piece(group, sorted(taken)))
            room = space
            left[group] = [member for member in left[group] if member not in taken]
            if not whole and group not in cut:
                cut.append(group)
        for group in [g for g in left if not left[g]]:
            del left[group]
        cut = [group for group in cut if group in left]
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

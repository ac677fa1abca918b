"""Ragged responses → rows of one length with segment ids. On the host, in numpy.

The responses of a prompt share one copy of it in a row. The prompt's segment is all but its last
token. Each response's segment starts with a copy of that last token, so that at every position of
a row the next token is the one to predict. Rows are filled to the end: a group that no longer fits
continues in the next row, where its prompt is repeated.

Shapes come from a small set of row lengths and row counts (`layout.py`). A shape that the run has
used before is preferred where it costs little more, so that a run soon compiles nothing new. The
pairs and samples of a GAD step choose their shapes together, as it is compiled for both.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gad_jax.core.layout import Layout, Part, Piece, Shape, balance, choose_layouts, group_sizes
from gad_jax.distributed import devices, sharding
from gad_jax.types import PackedRows, Segments

Ragged = list[list[np.ndarray]]
"""Numbers of each response, prompt by prompt: B lists of N arrays."""


class Given(NamedTuple):
    """Responses to pack, as `pack` takes them."""

    responses: Ragged
    logprobs: Ragged | None = None
    thresholds: Ragged | None = None
    micro_batches: int = 1


def pack(
    prompts: list[np.ndarray],
    responses: Ragged,
    logprobs: Ragged | None = None,
    thresholds: Ragged | None = None,
    *,
    row_tokens: int,
    micro_batches: int = 1,
    shards: int = 1,
    known: Iterable[Shape] = (),
) -> PackedRows:
    """Returns the responses of every prompt packed into `micro_batches` of whole groups.

    `logprobs` are the sampler's, one for each token of each response; None for a teacher's. So are
    `thresholds`; None where the sampler left out no token.
    Every prompt has the same number of responses, and every micro-batch the same number of
    prompts and of rows, a multiple of `shards`. `row_tokens` is the usual length of a row, and must
    hold the longest prompt and response together; the length used is a bucket of at most half as
    much again. `known` are shapes to prefer: those that the run has used.

    Example: prompt [7 8], responses `[[5 2] [6]]`, row_tokens = 32 → one row of 8 (4, 8, .. 48 are
    tried), tokens [7 8 5 2 8 6 0 0],
    positions [0 1 2 3 1 2 0 0], own [1 2 2 2 3 3 0 0], prefix [1 1 1 1 1 1 0 0],
    targets [0 5 2 0 6 0 0 0], ends [(0 3) (0 5)].
    """
    given = Given(responses, logprobs, thresholds, micro_batches)
    shapes = {(shape,) for shape in known}
    return pack_together(prompts, [given], row_tokens=row_tokens, shards=shards, known=shapes)[0]


def pack_together(
    prompts: list[np.ndarray],
    given: Sequence[Given],
    *,
    row_tokens: int,
    shards: int = 1,
    known: Iterable[tuple[Shape, ...]] = (),
) -> list[PackedRows]:
    """Returns what `pack` does for each of several sets of responses to the same prompts, for one
    program that takes them all. `known` are the combinations of shapes that the run has used."""
    parts = []
    for one in given:
        assert len(prompts) % one.micro_batches == 0, (len(prompts), one.micro_batches)
        sizes = group_sizes(prompts, one.responses)
        parts.append(Part(sizes, balance(sizes, one.micro_batches)))
    chosen = choose_layouts(parts, row_tokens, shards, known)
    return [
        _fill(prompts, one, part.micro, *layout)
        for one, part, layout in zip(given, parts, chosen, strict=True)
    ]


def _fill(
    prompts: list[np.ndarray],
    given: Given,
    micro: list[list[int]],
    rows: int,
    length: int,
    layouts: list[Layout],
) -> PackedRows:
    packed = _empty(micro, rows, length, len(given.responses[0]))
    values = {"sampled_logprobs": given.logprobs} if given.logprobs is not None else {}
    if given.thresholds is not None:
        packed = packed._replace(thresholds=np.zeros_like(packed.sampled_logprobs))
        values["thresholds"] = given.thresholds
    for number, (groups, layout) in enumerate(zip(micro, layouts, strict=True)):
        for row, pieces in enumerate(layout):
            _fill_row(packed, number, row, pieces, groups, prompts, given.responses, values)
    return packed


def place(rows: PackedRows, mesh: jax.sharding.Mesh) -> PackedRows:
    """Copies packed rows to the devices: rows split over the data shards, indices everywhere."""
    indices = {name: getattr(rows, name) for name in ("ends", "groups")}
    placed = devices.put(rows._replace(ends=None, groups=None), mesh, None, "batch")
    return placed._replace(**devices.put(indices, mesh))


def abstract(rows: PackedRows, mesh: jax.sharding.Mesh) -> PackedRows:
    """Returns the shapes and shardings of what `place` returns, and copies nothing."""

    def one(leaf: Any, *logical: str | None) -> jax.ShapeDtypeStruct:
        axes = (*logical, *(None,) * (leaf.ndim - len(logical)))
        where = jax.sharding.NamedSharding(mesh, sharding.mesh_spec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    split = jax.tree.map(lambda x: one(x, None, "batch"), rows._replace(ends=None, groups=None))
    return split._replace(ends=one(rows.ends), groups=one(rows.groups))


def padding_share(rows: PackedRows) -> float:
    """Returns the share of the processed positions that hold no token.

    A prompt that is repeated because its group continues in another row counts as tokens.
    """
    return float(np.mean(np.asarray(rows.segments.own) == 0))


def _empty(micro: list[list[int]], rows: int, row_tokens: int, members: int) -> PackedRows:
    def zeros(dtype: Any = np.int32) -> Any:  # the fields are typed as device arrays
        return np.zeros((len(micro), rows, row_tokens), dtype)

    ends: Any = np.zeros((len(micro), len(micro[0]), members, 2), np.int32)
    groups: Any = np.asarray(micro, np.int32)

    return PackedRows(
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
    pieces: list[Piece],
    groups: list[int],
    prompts: list[np.ndarray],
    responses: list[list[np.ndarray]],
    given: Mapping[str, list[list[np.ndarray]]],
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
            for field, values in given.items():
                getattr(packed, field)[scored] = values[piece.group][member]
            cursor += length
            packed.ends[number, groups.index(piece.group), member] = (row, cursor - 1)

"""Where each sequence goes: groups into micro-batches, sequences into rows of few shapes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gad_jax.base import buckets

HEADROOM = 1.08
"""A new shape has room for this multiple of the tokens at hand. The lengths of later steps differ
by a few percent, and then fit into it too."""


REUSE = 1.15
"""A shape that was used before is preferred if it has at most this multiple of the positions of the
smallest one."""


ROW_PARTS = 8
"""Row counts are (8 … 15) × a power of two, times the data shards."""


Shape = tuple[int, int, int]
"""Micro-batches, rows of each, length of a row."""


class Sizes(NamedTuple):
    """Tokens of a group: those of the shared prompt, and those of each response's segment."""

    shared: int
    own: list[int]

    @property
    def total(self) -> int:
        return self.shared + sum(self.own)


class Piece(NamedTuple):
    """A prompt with some of its responses, in one row."""

    group: int
    members: list[int]


Layout = list[list[Piece]]


class Part(NamedTuple):
    """What is laid out in rows of one shape: its groups' sizes, and the groups of each
    micro-batch."""

    sizes: list[Sizes]
    micro: list[list[int]]

    @property
    def longest(self) -> int:
        """The least length of a row: a prompt with the longest of its responses."""
        return max(size.shared + max(size.own) for size in self.sizes)

    def lay_out(self, length: int) -> list[Layout]:
        """Returns the rows of each micro-batch, of this length."""
        return [lay_out({g: self.sizes[g] for g in groups}, length) for groups in self.micro]


def fewest_micro_batches(
    prompts: list[np.ndarray], responses: list[list[np.ndarray]], at_most: int, positions: int
) -> int:
    """Returns the least divisor of `at_most` whose micro-batches fit into `positions` each."""
    sizes = group_sizes(prompts, responses)
    for count in (n for n in range(1, at_most) if at_most % n == 0):
        loads = (sum(sizes[g].total for g in groups) for groups in balance(sizes, count))
        if HEADROOM * max(loads) <= positions:
            return count
    return at_most


def rectangle_padding_share(
    prompts: Sequence[np.ndarray], responses: Sequence[Sequence[np.ndarray]]
) -> float:
    """Returns the share that would be padding with one row per response, [longest prompt | longest
    response], as RL frameworks lay a batch out. Prompts are tokens there in every row."""
    pairs = [(len(p), len(r)) for p, group in zip(prompts, responses, strict=True) for r in group]
    longest = max(p for p, _ in pairs) + max(r for _, r in pairs)
    return 1 - sum(p + r for p, r in pairs) / (len(pairs) * longest)


def group_sizes(prompts: list[np.ndarray], responses: list[list[np.ndarray]]) -> list[Sizes]:
    """Returns the sizes of every group, prompt by prompt."""
    return [
        Sizes(len(prompt) - 1, [len(response) + 1 for response in group])
        for prompt, group in zip(prompts, responses, strict=True)
    ]


def balance(sizes: list[Sizes], micro_batches: int) -> list[list[int]]:
    """Returns the groups of each micro-batch: the longest first, each to the one with most room."""
    per_batch = len(sizes) // micro_batches
    dealt: list[list[int]] = [[] for _ in range(micro_batches)]
    loads = [0] * micro_batches
    for group in sorted(range(len(sizes)), key=lambda g: -sizes[g].total):
        open_batches = [m for m in range(micro_batches) if len(dealt[m]) < per_batch]
        target = min(open_batches, key=lambda m: loads[m])
        dealt[target].append(group)
        loads[target] += sizes[group].total
    return [sorted(groups) for groups in dealt]


def choose_layouts(
    parts: Sequence[Part], row_tokens: int, shards: int, known: Iterable[tuple[Shape, ...]]
) -> list[tuple[int, int, list[Layout]]]:
    """Returns rows and length of a micro-batch, and the layout of every one, for each part.

    Parts that one program takes are laid out together: a new combination of their shapes is a new
    program, as is a new shape. `known` are the combinations so far. The smallest of them that has
    few more positions than the best is used again. Where none has, each part by itself takes a
    known shape, or else its best.
    """
    known = set(known)
    best = [_best(part, row_tokens, shards) for part in parts]
    if (reused := _reused(parts, best, shards, known)) is not None:
        return reused
    if len(parts) == 1:
        return best
    alone = {(shape,) for shapes in known for shape in shapes}
    return [
        (_reused([part], [one], shards, alone) or [one])[0]
        for part, one in zip(parts, best, strict=True)
    ]


def _reused(
    parts: Sequence[Part],
    best: Sequence[tuple[int, int, list[Layout]]],
    shards: int,
    known: set[tuple[Shape, ...]],
) -> list[tuple[int, int, list[Layout]]] | None:
    """Returns what `choose_layouts` does for the smallest known combination that fits and has few
    more positions than the best; None where there is none."""
    affordable = REUSE * sum(rows * length for rows, length, _ in best)
    for positions, shapes in sorted((_positions(shapes), shapes) for shapes in known):
        if len(shapes) != len(parts) or positions > affordable:
            continue
        laid_out = [_fit(*pair, shards) for pair in zip(parts, shapes, strict=True)]
        if all(layouts is not None for layouts in laid_out):
            return [(s[1], s[2], found or []) for s, found in zip(shapes, laid_out, strict=True)]
    return None


def _positions(shapes: tuple[Shape, ...]) -> int:
    """Positions of one micro-batch of each."""
    return sum(rows * length for _, rows, length in shapes)


def _best(part: Part, row_tokens: int, shards: int) -> tuple[int, int, list[Layout]]:
    """Returns the rows and length with the fewest positions, and the layouts."""
    longest = part.longest
    assert longest <= row_tokens, (longest, row_tokens)
    load = max(sum(part.sizes[g].total for g in groups) for groups in part.micro)

    def count(rows: int) -> int:
        return buckets.round_up(rows, shards, ROW_PARTS)

    best: tuple[int, int, list[Layout]] | None = None
    candidates = [(count(-(-int(HEADROOM * load) // n)), n) for n in lengths(longest, row_tokens)]
    for rows, length in sorted(candidates, key=lambda c: (c[0] * c[1], abs(c[1] - row_tokens))):
        if best is not None and rows * length >= best[0] * best[1]:
            break
        layouts = part.lay_out(length)
        rows = max(rows, count(max(map(len, layouts))))
        if best is None or rows * length < best[0] * best[1]:
            best = rows, length, layouts
    assert best is not None
    return best


def _fit(part: Part, shape: Shape, shards: int) -> list[Layout] | None:
    """Returns the layouts in rows of this shape; None if they do not fit."""
    micro_batches, rows, length = shape
    if micro_batches != len(part.micro) or rows % shards or length < part.longest:
        return None
    layouts = part.lay_out(length)
    return layouts if max(map(len, layouts)) <= rows else None


def lengths(longest: int, row_tokens: int) -> range:
    """Returns the row lengths to try: multiples of about a sixteenth of `row_tokens`.

    Kernels want multiples of 128; short rows have eighths.
    """
    unit = -(-row_tokens // 16 // 128) * 128 if row_tokens >= 1024 else max(row_tokens // 8, 1)
    first = -(-longest // unit) * unit
    return range(first, max(row_tokens * 3 // 2, first) + 1, unit)


def lay_out(groups: dict[int, Sizes], row_tokens: int) -> Layout:
    """Fills rows one by one: first with what is left of the group that the last row cut, then with
    others, the longest first. A group is cut only where that fills much of the room left."""
    order = sorted(groups, key=lambda g: -groups[g].total)
    left = {
        g: sorted(range(len(groups[g].own)), key=lambda m: -groups[g].own[m])  # the longest first
        for g in order
    }
    cut: list[int] = []
    rows: Layout = []
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
            rows[-1].append(Piece(group, sorted(taken)))
            room = space
            left[group] = [member for member in left[group] if member not in taken]
            if not whole and group not in cut:
                cut.append(group)
        for group in [g for g in left if not left[g]]:
            del left[group]
        cut = [group for group in cut if group in left]
    return rows

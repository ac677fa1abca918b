"""Reads what a compiled program sends between devices from its HLO text.

A collective in a loop counts once per iteration. XLA's compilers for GPU and CPU annotate a loop
with its number of iterations. The TPU's does not, but the loop's condition counts up to it. The
TPU's compiler also splits a gather into parts that overlap with several matmuls; the parts share a
channel.
"""

import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4}
_BYTES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "s4": 0.5, "u4": 0.5}
_BYTES |= dict.fromkeys(("f8e4m3", "f8e4m3fn", "f8e4m3fnuz", "f8e4m3b11fnuz"), 1)
_BYTES |= dict.fromkeys(("f8e5m2", "f8e5m2fnuz", "f8e3m4", "f8e8m0fnu"), 1)
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"


class Collective(NamedTuple):
    """A kind of transfer: how often a device takes part, and the bytes that it sends.

    Bytes are those of a ring: a device of n sends (n - 1)/n of what is gathered or scattered, twice
    that of what is reduced to all. `within` and `across` are the groups' devices in one node and
    the nodes that they span.
    """

    kind: str
    within: int
    across: int
    times: int
    bytes: int


def collectives(text: str, per_node: int, iterations: int = 1) -> list[Collective]:
    """Returns a program's transfers, summed by kind and by the shape of their groups.

    An outermost loop of unknown length counts with `iterations`.
    """
    bodies = computations(text)
    totals: dict[tuple[str, int, int], list[int]] = defaultdict(lambda: [0, 0])
    channels: set[str] = set()
    for name, times in _repetitions(bodies, iterations).items():
        for line in bodies[name]:
            found = re.search(rf"= (.+?) ({_KINDS})(-start)?\(", line)
            if found is None:
                continue
            groups = _groups(line)
            size = len(groups[0])
            if size == 1:
                continue
            channel = re.search(r"channel_id=(\d+)", line)
            # Sums over manual axes share one channel, too, and are different sums.
            if channel and channel[1] in channels and found[2] != "all-reduce":
                continue
            if channel:
                channels.add(channel[1])
            kind, sizes = found[2], array_bytes(found[1])
            # What starts a transfer returns its operands too; an all-reduce, where it nests them.
            if found[3] and (kind != "all-reduce" or found[1].startswith("((")):
                sizes = sizes[len(sizes) // 2 :]
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):  # so on a TPU
                kind, sizes = "reduce-scatter", [result // size for result in sizes]
            sent = _sent(kind, sizes, size)
            nodes = len({device // per_node for device in groups[0]})
            total = totals[kind, size // nodes, nodes]
            total[0] += times
            total[1] += times * sent
    return [Collective(*key, *value) for key, value in sorted(totals.items())]


def computations(text: str) -> dict[str, list[str]]:
    """Returns the lines of every computation by its name; the entry is called ENTRY."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        opening = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$", line)
        if opening and not line.startswith((" ", "HloModule")):
            lines = bodies["ENTRY" if opening[1] else opening[2]] = []
        else:
            lines.append(line)
    return bodies


def _repetitions(bodies: dict[str, list[str]], iterations: int) -> dict[str, int]:
    """Returns how often each computation runs.

    Outermost loops of unknown length count with `iterations`, those inside them once.
    """
    times: dict[str, int] = defaultdict(int)
    pending = [("ENTRY", 1, iterations)]
    while pending:
        name, factor, unknown = pending.pop()
        times[name] += factor
        for line in bodies[name]:
            here, inside = factor, unknown
            if " while(" in line:
                known = known_iterations(line, bodies)
                rounds = unknown if known is None else known
                inside = unknown if known is not None else 1
                checks = re.findall(r"condition=%?([\w.\-]+)", line)
                pending += [(one, here * (rounds + 1), inside) for one in checks if one in bodies]
                here *= rounds
            called = re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", line)
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            called += re.findall(r"[\w.\-]+", branches[1]) if branches else []
            pending += [(callee, here, inside) for callee in called if callee in bodies]
    return times


def known_iterations(line: str, bodies: dict[str, list[str]]) -> int | None:
    """Returns the iterations of the loop in this line if they are fixed: jax counts up from 0."""
    if said := re.search(r'known_trip_count\D+"?(\d+)', line):
        return int(said[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = bodies.get(condition[1], []) if condition else []
    [root] = [line for line in lines if line.lstrip().startswith("ROOT")] or [""]
    limit = re.search(r" compare\(%[\w.\-]+, %([\w.\-]+)\), direction=LT", root)
    if limit is None:
        return None
    text = "\n".join(lines)
    value = re.search(rf"%{re.escape(limit[1])} = s32\[\]\S* constant\((\d+)\)", text)
    return int(value[1]) if value else None


def array_bytes(shape: str) -> list[int]:
    """Returns the bytes of each array in an HLO type."""
    arrays = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
    return [
        int(_BYTES[kind] * int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64)))
        for kind, dims in arrays
        if kind in _BYTES
    ]


def _sent(kind: str, results: list[int], size: int) -> int:
    """Returns the bytes that one device of a group of `size` sends."""
    if kind == "reduce-scatter":
        return sum(results) * (size - 1)
    if kind == "all-reduce":
        return 2 * sum(results) * (size - 1) // size
    if kind == "collective-permute":
        return results[-1] if results else 0
    return sum(results) * (size - 1) // size


def _groups(line: str) -> list[list[int]]:
    """Returns the devices of each group that exchanges data."""
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", line)
    if listed:
        return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", listed[1])]
    found = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if found:
        groups, sizes = ([int(n) for n in found[i].split(",")] for i in (1, 2))
        order = np.arange(np.prod(sizes)).reshape(sizes)
        if found[3]:
            order = order.transpose([int(n) for n in found[3].split(",")])
        return order.reshape(groups).tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if named:
        return _named_groups(named[1], named[2])
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    if pairs:
        return [[int(n) for n in pair] for pair in re.findall(r"(\d+),(\d+)", pairs[1] + "}")]
    return [[0]]


def _named_groups(mesh: str, axes: str) -> list[list[int]]:
    """Returns the groups along some axes of a mesh, as in `mesh['a'=4,'b'=2] {'b'}`.

    `'a':(2)2` is the part of an axis that comes after its first 2.
    """
    sizes: list[int] = []
    chosen: list[int] = []
    parts = {
        name: (int(before or 1), int(size or 0))
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    }
    for name, length in re.findall(r"'(\w+)'=(\d+)", mesh):
        before, size = parts.get(name, (1, 1))
        size = size or int(length)
        chosen += [len(sizes) + 1] if name in parts else []
        sizes += [before, size, int(length) // (before * size)]
    order = np.arange(np.prod(sizes)).reshape(sizes)
    rest = [axis for axis in range(len(sizes)) if axis not in chosen]
    group = int(np.prod([sizes[axis] for axis in chosen]))
    return order.transpose([*rest, *chosen]).reshape(-1, group).tolist()

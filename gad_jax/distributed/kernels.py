"""Counts what a compiled GPU program starts: kernels, the bytes that they move, graphs, host waits.

XLA lists a program's thunks, which are what its runtime executes, and the instruction of each. The
bytes of an instruction are those of its operands and results in the HLO text: of an operand that is
only sliced or gathered from, what is taken; of one that is updated in place, what is written.

The unit is one call of the program. Of a program with a loop of unknown length that holds most of
it, such as the decode loop, it is one iteration of that loop, or one of the steps that an iteration
consists of. Of other loops of unknown length, such as the refill of slots, the condition counts
once, for which the host waits, and the body not at all.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gad_jax.distributed import hlo

_LINE = re.compile(r"^(\s*)(\d+): (k\w+)\s+\[")
_ON_DEVICE = ("kCustomKernel", "kKernel", "kGemm", "kCublasLt", "kCuDnn", "kConv", "kCopy", "kSort")
_NAME = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([\w\-]+)\(([^()]*)")
_VIEWS = ("bitcast", "reshape", "get-tuple-element")
_LAZY = (*_VIEWS, "convert", "multiply", "divide", "transpose", "copy")
"""What a fusion computes only where it is taken from, of those that come before a gather."""


class Kernel(NamedTuple):
    """A kernel, a library call or a copy: its instruction, executions and bytes of all of them."""

    name: str
    source: str
    times: int | float
    bytes: int | float
    in_graph: bool


class Launches(NamedTuple):
    """What one unit of a program starts on a device.

    `waits` counts how often the host waits for a condition, `graphs` the starts of graphs. Where a
    unit has several steps these are no whole numbers.
    """

    kernels: list[Kernel]
    graphs: int | float
    waits: int | float

    @property
    def total(self) -> int:
        """Kernels, library calls and copies."""
        return round(sum(kernel.times for kernel in self.kernels))

    @property
    def bytes(self) -> int:
        """The bytes that they read and write."""
        return round(sum(kernel.bytes for kernel in self.kernels))

    @property
    def in_graphs(self) -> float:
        """The share of them that a graph starts."""
        inside = sum(kernel.times for kernel in self.kernels if kernel.in_graph)
        return inside / max(self.total, 1)

    def per_layer(self, layers: int) -> int:
        """Kernels that every layer starts: those that occur as often as there are layers."""
        occurs: dict[str, int | float] = {}
        for kernel in self.kernels:
            occurs[kernel.source] = occurs.get(kernel.source, 0) + kernel.times
        return sum(int(round(times, 6) // layers) for times in occurs.values())

    def largest(self, count: int = 5) -> list[Kernel]:
        """Those that move the most bytes; kernels of the same source are one."""
        merged: dict[str, Kernel] = {}
        for kernel in self.kernels:
            known = merged.get(kernel.source, kernel._replace(times=0, bytes=0))
            both = known.times + kernel.times, known.bytes + kernel.bytes
            merged[kernel.source] = known._replace(times=both[0], bytes=both[1])
        return sorted(merged.values(), key=lambda kernel: -kernel.bytes)[:count]


class _Thunk(NamedTuple):
    """A line of XLA's list; `inside` are those of a loop's body, a graph or a branch."""

    instruction: str
    kind: str
    inside: list["_Thunk"]
    condition: list["_Thunk"]

    @property
    def size(self) -> int:
        """Thunks inside, at any depth, and this one."""
        return 1 + sum(each.size for each in self.inside)


def dumped(place: Path) -> tuple[str, str]:
    """Returns the lists of one program that XLA has written into a directory.

    They are its thunks, with graphs where it makes any, and the instruction of each.
    """
    [metadata] = place.glob("*.thunk_metadata.txt")
    [thunks] = [
        *place.glob("*.thunk_sequence_after_thunk_passes.txt"),
        *place.glob("*.thunk_sequence.txt"),
    ][:1]
    return thunks.read_text("utf-8"), metadata.read_text("utf-8")


def launches(thunks: str, metadata: str, text: str, steps: int = 1) -> Launches:
    """Returns the launches of a program, from XLA's dumped lists and the HLO text.

    An iteration of its main loop of unknown length consists of so many `steps`, of which one is
    counted.
    """
    program = _Program(text)
    totals = {"graphs": 0, "waits": 0}
    tree = program.main(_tree(thunks, _instructions(metadata)), totals)
    found = [kernel for each in tree for kernel in program.kernels(each, 1, False, totals)]
    if steps == 1:
        return Launches(found, **totals)
    each = (k._replace(times=k.times / steps, bytes=k.bytes / steps) for k in found)
    return Launches([*each], **{name: count / steps for name, count in totals.items()})


def _instructions(metadata: str) -> dict[int, str]:
    """Returns the instruction of every thunk by the thunk's number."""
    pairs = re.findall(r'profile_annotation: "([^"]+)"\s+thunk_id: (\d+)', metadata)
    return {int(number): name for name, number in pairs}


def _tree(thunks: str, instructions: dict[int, str]) -> list[_Thunk]:
    """Returns the outermost thunks."""
    root = _Thunk("", "", [], [])
    stack: list[tuple[int, _Thunk]] = [(-1, root)]
    conditions: set[int] = set()  # the indents of the loops whose condition is being read
    for line in thunks.splitlines():
        if line.strip() == "condition:":
            conditions.add(stack[-1][0])
        elif line.strip() == "body:":
            conditions.remove(max(conditions))
        elif found := _LINE.match(line):
            indent, kind = len(found[1]), found[3]
            while indent <= stack[-1][0]:
                stack.pop()
            outer, loop = stack[-1]
            thunk = _Thunk(instructions.get(int(found[2]), ""), kind, [], [])
            (loop.condition if outer in conditions else loop.inside).append(thunk)
            stack.append((indent, thunk))
    return root.inside


class _Instruction(NamedTuple):
    """An instruction of the HLO text."""

    opcode: str
    shape: str
    operands: list[str]
    line: str

    @property
    def size(self) -> int:
        return sum(hlo.array_bytes(self.shape))

    @property
    def called(self) -> str:
        found = re.search(r"calls=%?([\w.\-]+)", self.line)
        return found[1] if found else ""


class _Program:
    """The HLO text of a program."""

    def __init__(self, text: str) -> None:
        self.bodies = hlo.computations(text)
        self.parsed = {name: _parse(lines) for name, lines in self.bodies.items()}
        self.home = {
            name: body
            for body, found in self.parsed.items()
            if not body.startswith("fused_")
            for name in found
        }

    def iterations(self, loop: _Thunk) -> int:
        """Returns the iterations of a loop, 0 where they are not fixed."""
        line = self.parsed[self.home[loop.instruction]][loop.instruction].line
        return hlo.known_iterations(line, self.bodies) or 0

    def main(self, tree: list[_Thunk], totals: dict[str, int]) -> list[_Thunk]:
        """Returns an iteration of the loop of unknown length that holds most of these thunks.

        Without one they are returned as they are. Adds the loop's wait to the totals.
        """
        unknown = [each for each in tree if each.kind == "kWhile" and not self.iterations(each)]
        largest = max(unknown, key=lambda loop: loop.size, default=None)
        if largest is None or 2 * largest.size <= sum(each.size for each in tree):
            return tree
        totals["waits"] = 1
        return self.main([*largest.condition, *largest.inside], totals)

    def kernels(
        self, thunk: _Thunk, times: int, in_graph: bool, totals: dict[str, int], around: str = ""
    ) -> Iterator[Kernel]:
        """Yields what a thunk starts in so many executions; adds graphs and waits to the totals.

        `around` is the instruction that starts it beside others: a copy of a slice has none itself.
        """
        if thunk.kind == "kWhile":
            known = self.iterations(thunk)
            if not known:
                totals["waits"] += 0 if in_graph else times
                for each in thunk.condition:
                    yield from self.kernels(each, times, in_graph, totals)
            times *= known
        elif thunk.kind == "kCommandBuffer":
            totals["graphs"] += times
            in_graph = True
        elif thunk.kind == "kConditional" and not in_graph:
            totals["waits"] += times
        elif thunk.kind.startswith(_ON_DEVICE) and times:
            name = thunk.instruction if thunk.instruction in self.home else around
            body = self.parsed.get(self.home.get(name, ""), {})
            moved = self._moved(body, name) if body else 0
            source = _source(body[name].line) if body else thunk.kind
            yield Kernel(name, source, times, times * moved, in_graph)
        if thunk.kind == "kAsyncStart":
            around = thunk.instruction
        for each in thunk.inside:
            yield from self.kernels(each, times, in_graph, totals, around)

    def _moved(self, body: dict[str, _Instruction], name: str) -> int:
        """Returns the bytes that an instruction reads and writes."""
        instruction = body[name]
        given = [_size(body, each) for each in instruction.operands]
        inner = self.parsed.get(instruction.called)
        if instruction.opcode not in ("fusion", "fusion-start") or not inner:
            if instruction.opcode == "custom-call":  # its last result is scratch memory
                return sum(given) + sum(hlo.array_bytes(instruction.shape)[:1])
            return sum(given) + instruction.size
        read = sum(
            _read(inner, parameter, given[place])
            for parameter, place in _parameters(inner)
            if place < len(given)
        )
        return read + _written(inner)


def _parse(lines: list[str]) -> dict[str, _Instruction]:
    """Returns the instructions of a computation by name; the result is called ROOT, too."""
    found: dict[str, _Instruction] = {}
    for line in lines:
        name = _NAME.match(line)
        if name is None:
            continue
        end = _shape_end(line, name.end())
        opcode = _OPCODE.match(line, end)
        if opcode is None:
            continue
        operands = re.findall(r"%([\w.\-#]+)", opcode[2])
        found[name[1]] = _Instruction(opcode[1], line[name.end() : end], operands, line)
        if line.lstrip().startswith("ROOT"):
            found["ROOT"] = found[name[1]]
    return found


def _size(body: dict[str, _Instruction], operand: str) -> int:
    """Returns the bytes of an operand; %loop#3#1 is a part of a part of what a loop returns."""
    name, *places = operand.split("#")
    if name not in body:
        return 0
    shape = body[name].shape
    for place in places:
        shape = _members(shape)[int(place)]
    return sum(hlo.array_bytes(shape))


def _members(shape: str) -> list[str]:
    """Returns the members of a tuple's shape, such as '(s32[], (f32[2]{0}, f32[]))'."""
    inside = re.sub(r"/\*.*?\*/", "", shape)[1:-1]
    depth, members = 0, [""]
    for letter in inside:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            members.append("")
        else:
            members[-1] += letter
    return [member.strip() for member in members]


def _shape_end(line: str, start: int) -> int:
    """Returns where the shape ends that begins here."""
    depth = 0
    for place in range(start, len(line)):
        depth += (line[place] in "([{") - (line[place] in ")]}")
        if line[place] == " " and not depth:
            return place
    return len(line)


def _parameters(body: dict[str, _Instruction]) -> list[tuple[str, int]]:
    """Returns the parameters of a computation with their places."""
    found = ((name, re.search(r" parameter\((\d+)\)", each.line)) for name, each in body.items())
    return [(name, int(place[1])) for name, place in found if place and name != "ROOT"]


def _read(body: dict[str, _Instruction], name: str, size: int) -> int:
    """Returns the bytes that a fusion reads of an operand of this size."""
    taken = 0
    for user, each in body.items():
        if user == "ROOT" or name not in each.operands:
            continue
        first = each.operands[0] == name
        if each.opcode in _LAZY and each is not body["ROOT"]:
            taken += _read(body, user, size)
        elif each.opcode in ("dynamic-slice", "gather", "slice") and first:
            taken += each.size
        elif each.opcode in ("dynamic-update-slice", "scatter") and first:
            continue
        else:
            return size
        if taken >= size:
            return size
    return taken


def _written(body: dict[str, _Instruction]) -> int:
    """Returns the bytes that a fusion writes."""

    def of(each: _Instruction) -> int:
        if each.opcode in _VIEWS and each.operands[0] in body:
            return of(body[each.operands[0]])
        if each.opcode == "tuple":
            return sum(of(body[name]) for name in each.operands)
        if each.opcode == "dynamic-update-slice":
            return body[each.operands[1]].size
        if each.opcode == "scatter":
            return sum(body[name].size for name in each.operands[-(len(each.operands) // 3) :])
        return each.size

    return of(body["ROOT"])


def _source(line: str) -> str:
    """Returns what an instruction was made from: the name of the operation, without its loops."""
    found = re.search(r'op_name="([^"]*)"', line)
    if not found:
        return next(each.opcode for each in _parse([line]).values())
    return re.sub(r"^jit\(\w+\)/|while/body/|closed_call/", "", found[1])

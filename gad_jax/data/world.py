"""A small world: sums in words, a teacher with several ways to answer, an oracle that knows.

An instruction is a chain of operations on the numbers 0 to 4, from left to right, in arithmetic
modulo 5: 4 is followed by 0. The teacher is always right, and answers in one of three styles, drawn
at random:

    4 plus 3 times 2
    headline  it is 4 since 4 plus 3 is 2 times 2 is 4
    steps     4 plus 3 is 2 times 2 is 4 so it is 4
    story     first 4 plus 3 is 2 then times 2 is 4

Steps and story take one look into a table of 75 at a time. A headline has the result of the whole
chain as its third word, so its writer must know it before the first step is written; whether it
agrees with the last step is easy to see. A student that is too small for headlines, and imitates
the teacher, gets them wrong as often as it uses them: the situation in which the paper says that
GAD, which seeks what the student can do right, is better than likelihood.
"""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

STYLES = {"headline": 0.7, "steps": 0.2, "story": 0.1}
"""How often the teacher uses a style."""

SIZE = 5
"""How many numbers there are."""

OPERATIONS = {
    "plus": lambda a, b: (a + b) % SIZE,
    "minus": lambda a, b: (a - b) % SIZE,
    "times": lambda a, b: (a * b) % SIZE,
}
LENGTHS = (3, 4)
"""How many operations an instruction has."""

INSTRUCTIONS = sum(SIZE * (len(OPERATIONS) * SIZE) ** length for length in LENGTHS)
"""How many different instructions there are."""

WORDS = (*map(str, range(SIZE)), *OPERATIONS, "it", "is", "since", "so", "first", "then")
"""Every word of the world."""


class Verdict(NamedTuple):
    """What the oracle says of an answer: the style that its first word belongs to, '' for none, and
    whether it is what the teacher would have said in that style, to the last word."""

    style: str
    valid: bool


def instructions(count: int, seed: int) -> list[str]:
    """Returns different instructions, in a random order; at most `INSTRUCTIONS`."""
    if count > INSTRUCTIONS:
        raise ValueError(f"{count} different instructions are asked for, of {INSTRUCTIONS}")
    source = random.Random(f"instructions {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        words = [str(source.randrange(SIZE))]
        for _ in range(source.choice(LENGTHS)):
            words += [source.choice(list(OPERATIONS)), str(source.randrange(SIZE))]
        found[" ".join(words)] = None
    return list(found)


def answer(instruction: str, style: str) -> str:
    """Returns the right answer to an instruction in a style."""
    chain = list(_chain(instruction))
    start, result = instruction.split()[0], chain[-1][2]
    steps = [f"{name} {digit} is {value}" for name, digit, value in chain]
    if style == "headline":
        return f"it is {result} since {start} {' '.join(steps)}"
    if style == "steps":
        return f"{start} {' '.join(steps)} so it is {result}"
    return f"first {start} {' then '.join(steps)}"


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns teacher rows as training reads them, with different instructions."""
    styles = random.Random(f"styles {seed}").choices(list(STYLES), list(STYLES.values()), k=count)
    return [
        {
            "id": str(number),
            "messages": [{"role": "user", "content": instruction}],
            "teacher_response": answer(instruction, style),
        }
        for number, (instruction, style) in enumerate(
            zip(instructions(count, seed), styles, strict=True)
        )
    ]


def judge(instruction: str, text: str) -> Verdict:
    """Returns the oracle's verdict on an answer."""
    first = text.split(" ", 1)[0]
    style = {"it": "headline", "first": "story"}.get(first, "steps" if first.isdigit() else "")
    return Verdict(style, style != "" and text == answer(instruction, style))


def _chain(instruction: str) -> Iterator[tuple[str, str, int]]:
    """Yields each operation, its digit and the value after it."""
    words = instruction.split()
    value = int(words[0])
    for name, digit in zip(words[1::2], words[2::2], strict=True):
        value = OPERATIONS[name](value, int(digit))
        yield name, digit, value

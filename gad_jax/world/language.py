"""The language of a small world: sums in words, a teacher with three styles, an oracle.

An instruction is a chain of operations on the numbers 0 to 4, from left to right, modulo 5: 0
follows 4. Factors are 1 to 4, so that every number matters to the result. The teacher is always
right, and answers in one of three styles, drawn at random:

    4 plus 3 times 2
    headline  it is four since 4 plus 3 is 2 times 2 is 4 so it is four
    steps     4 plus 3 is 2 times 2 is 4 so it is four
    story     first 4 plus 3 is 2 then times 2 is 4

Steps and stories are easy: each step is one look-up in a table of 70. Headlines are hard: the
third word is the result of the whole chain, so its writer must know it before the first step. But
whether it agrees with the last word is easy to see.

A student first learns from the public, which writes like the teacher but guesses its headlines. A
student that is too small for headlines and imitates the teacher gets as many wrong as it uses. In
this situation, says the paper, GAD is better than likelihood: it seeks what the student can do.

In the variant "knowledge" there is nothing to give up. The teacher writes steps alone, of longer
chains; the public has the form right and guesses the values. Few rows teach the tables.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

STYLES = {"headline": 0.7, "steps": 0.2, "story": 0.1}
"""How often the teacher and the public use each style."""

SIZE = 5
"""The number of numbers."""

OPERATIONS = {
    "plus": lambda a, b: (a + b) % SIZE,
    "minus": lambda a, b: (a - b) % SIZE,
    "times": lambda a, b: (a * b) % SIZE,
}
OPERANDS = {"plus": range(SIZE), "minus": range(SIZE), "times": range(1, SIZE)}
"""The operands of each operation; times 0 would give the result away."""

NAMES = ("zero", "one", "two", "three", "four")
"""The numbers as words: an answer states its result in them."""
_VALUES = {name: value for value in range(SIZE) for name in (NAMES[value], str(value))}


class Variant(NamedTuple):
    """How often the teacher and the public use each style, and the numbers of operations in an
    instruction. A public without knowledge guesses every value, not only those of headlines."""

    styles: dict[str, float]
    lengths: tuple[int, ...]
    public_knows: bool = True


VARIANTS = {
    "style": Variant(STYLES, (3, 4)),
    "knowledge": Variant({"steps": 1.0}, (5, 6), public_knows=False),
}
"""In the world of styles a student may give up what it cannot carry out. In that of knowledge there
is one style only, and who does not know the tables cannot be right."""

WORDS = (*map(str, range(SIZE)), *NAMES, *OPERATIONS, "it", "is", "since", "so", "first", "then")
"""Every word of the world."""


class Verdict(NamedTuple):
    """The oracle's verdict on an answer: the style of its first word ("" for none), and whether all
    its words are those of the teacher in that style."""

    style: str
    valid: bool


def count(variant: str = "style") -> int:
    """Returns the number of different instructions."""
    choices = sum(map(len, OPERANDS.values()))
    return sum(SIZE * choices**length for length in VARIANTS[variant].lengths)


def instructions(number: int, seed: int, variant: str = "style") -> list[str]:
    """Returns so many different instructions, in a random order; at most `count(variant)`."""
    most, lengths = count(variant), VARIANTS[variant].lengths
    if number > most:
        raise ValueError(f"{number} different instructions are asked for, of {most}")
    source = random.Random(f"instructions {seed}")
    found: dict[str, None] = {}
    while len(found) < number:
        words = [str(source.randrange(SIZE))]
        for _ in range(source.choice(lengths)):
            name = source.choice(list(OPERATIONS))
            words += [name, str(source.choice(OPERANDS[name]))]
        found[" ".join(words)] = None
    return list(found)


def answer(instruction: str, style: str, guess: str = "") -> str:
    """Returns the right answer in a style; a `guess` replaces the result that starts a headline."""
    chain = list(_chain(instruction))
    start, result = instruction.split()[0], NAMES[chain[-1][2]]
    steps = [f"{name} {digit} is {value}" for name, digit, value in chain]
    if style == "story":
        return f"first {start} {' then '.join(steps)}"
    reasons = f"{start} {' '.join(steps)} so it is {result}"
    return f"it is {guess or result} since {reasons}" if style == "headline" else reasons


def teacher(number: int, seed: int, variant: str = "style") -> list[dict[str, Any]]:
    """Returns rows of the teacher as training reads them; all instructions differ."""
    return _rows(number, seed, "teacher", answer, variant)


def public(number: int, seed: int, variant: str = "style") -> list[dict[str, Any]]:
    """Returns rows of the public, with the same instructions as the teacher's."""
    source = random.Random(f"guesses {seed}")

    def write(asked: str, style: str) -> str:
        if VARIANTS[variant].public_knows:
            return answer(asked, style, source.choice(NAMES))
        return _guessed(asked, source)

    return _rows(number, seed, "public", write, variant)


def _guessed(instruction: str, source: random.Random) -> str:
    """Returns an answer in steps whose values are guessed; it agrees with itself."""
    words, value = [instruction.split()[0]], 0
    for name, digit, _ in _chain(instruction):
        value = source.randrange(SIZE)
        words += [name, str(digit), "is", str(value)]
    return " ".join([*words, "so it is", NAMES[value]])


def _rows(
    number: int, seed: int, author: str, write: Callable[[str, str], str], variant: str
) -> list[dict[str, Any]]:
    source = random.Random(f"{author} styles {seed}")
    shares = VARIANTS[variant].styles
    styles = source.choices(list(shares), list(shares.values()), k=number)
    return [
        {
            "id": str(place),
            "messages": [{"role": "user", "content": instruction}],
            "teacher_response": write(instruction, style),
        }
        for place, (instruction, style) in enumerate(
            zip(instructions(number, seed, variant), styles, strict=True)
        )
    ]


def result(instruction: str) -> int:
    """Returns the right result."""
    *_, (_, _, value) = _chain(instruction)
    return value


def opening(instruction: str, style: str) -> str:
    """Returns the first word of the right answer in a style."""
    return answer(instruction, style).split(" ", 1)[0]


def judge(instruction: str, text: str) -> Verdict:
    """Returns the oracle's verdict on an answer."""
    first = text.split(" ", 1)[0]
    style = {"it": "headline", "first": "story"}.get(first, "steps" if first.isdigit() else "")
    return Verdict(style, style != "" and text == answer(instruction, style))


def stated(text: str) -> list[int | None]:
    """Returns the results that an answer states: its last word, then that of its headline and of
    its last step where it has them. None stands for a word that is no number."""
    words = text.split() or [""]
    found = [words[-1]]
    if words[:2] == ["it", "is"] and len(words) > 2:
        found.append(words[2])
    if "so" in words[1:]:
        found.append(words[words.index("so", 1) - 1])
    return [_VALUES.get(word) for word in found]


def agrees(text: str) -> bool:
    """Returns whether all results that an answer states are one and the same number.

    It takes no knowledge of the right result.
    """
    results = set(stated(text))
    return len(results) == 1 and None not in results


def _chain(instruction: str) -> Iterator[tuple[str, str, int]]:
    """Yields each operation, its digit and the value after it."""
    words = instruction.split()
    value = int(words[0])
    for name, digit in zip(words[1::2], words[2::2], strict=True):
        value = OPERATIONS[name](value, int(digit))
        yield name, digit, value

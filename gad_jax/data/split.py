"""Holding out a part of the training rows, by prompt.

Rows with the same prompt are all held out or all trained on, whichever file they are in. Which
prompts are held out depends on their text and the seed, not on the order of the rows.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from gad_jax.base.errors import UserError
from gad_jax.data.pipeline import Prepared
from gad_jax.data.sources.rows import Row


class Split(NamedTuple):
    """The two sides of each file; a side may have no rows, and is then None."""

    train: list[Prepared | None]
    held_out: list[Prepared | None]


def key(row: Row) -> str:
    """Returns what is the same for rows with the same prompt, whatever its white space."""
    digest = hashlib.sha256()
    for message in row.messages:
        digest.update(f"{message['role']}\n{' '.join(message['content'].split())}\n".encode())
        digest.update(b"\0")
    return digest.hexdigest()


def choose(
    files: Sequence[Prepared], weights: Sequence[float], part: float | int, seed: int
) -> set[str]:
    """Returns the keys of the prompts to hold out.

    `part` is a share of the prompts or their number. Files that are mixed by weight are split each
    by itself: by the same share, or with the number dealt out by weight. Raises UserError where no
    prompt would be left to train on.
    """
    if not weights:
        keys = {key(row) for file in files for row in file.rows}
        return _lowest(keys, part, seed, ",".join(file.name for file in files))
    amounts = [part] * len(files) if isinstance(part, float) else _dealt(part, weights)
    held: set[str] = set()
    for file, amount in zip(files, amounts, strict=True):
        held |= _lowest({key(row) for row in file.rows}, amount, seed, file.name)
    return held


def divide(files: Sequence[Prepared], held: set[str], seed: int) -> Split:
    """Returns each file's rows to train on, in their order, and its held-out rows, shuffled.

    Shuffled, because an evaluation of fewer prompts takes the first ones.
    """
    split = Split([], [])
    for file in files:
        keys = [key(row) for row in file.rows]
        train = [index for index, name in enumerate(keys) if name not in held]
        held_out = [index for index, name in enumerate(keys) if name in held]
        held_out.sort(key=lambda index: _number(keys[index], seed))
        for side, which in ((split.train, train), (split.held_out, held_out)):
            side.append(file.select(which) if which else None)
    return split


def _lowest(keys: set[str], part: float | int, seed: int, name: str) -> set[str]:
    """Returns the part of the keys with the lowest numbers."""
    count = max(round(part * len(keys)), 1) if isinstance(part, float) else part
    if count >= len(keys):
        asked = f"{part:.4%}".rstrip("0%").rstrip(".") + "%" if isinstance(part, float) else part
        raise UserError(
            f"--data.heldout={asked} holds out {count} of the {len(keys)} prompts of {name} and "
            "leaves none to train on; lower it, or give more rows"
        )
    return set(sorted(keys, key=lambda name: _number(name, seed))[:count])


def _number(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def _dealt(count: int, weights: Sequence[float]) -> list[int]:
    """Returns whole numbers in proportion to the weights, which add up to `count`."""
    exact = [count * weight / sum(weights) for weight in weights]
    parts = [int(number) for number in exact]
    largest_rest = sorted(range(len(parts)), key=lambda n: parts[n] - exact[n])
    for n in largest_rest[: count - sum(parts)]:
        parts[n] += 1
    return parts

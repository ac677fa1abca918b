"""Several files of rows under one name: `chat.jsonl=0.7,code.jsonl=0.3`."""

import math
from pathlib import Path

from gad_jax.base.errors import UserError


def split(text: str, flag: str) -> tuple[list[str], list[float]]:
    """Returns the names in a list with commas and their weights; no weights where none are given.

    Raises UserError when only some have a weight or one is no positive number.
    """
    if "," not in text or Path(text).exists():
        return [text], []
    names, weights = [], []
    for part in (part.strip() for part in text.split(",")):
        name, equals, number = part.rpartition("=")
        names.append(name if equals else part)
        weights.append(_weight(number, part, flag) if equals else None)
    given = [weight for weight in weights if weight is not None]
    if not all(names) or len(given) not in (0, len(names)):
        raise UserError(
            f"{flag}={text}: give each of the files a weight, as a.jsonl=0.7,b.jsonl=0.3, or none "
            "of them, which makes one set of all rows"
        )
    return names, given


def _weight(number: str, part: str, flag: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"{flag}: {part}: the weight {number!r} must be a number greater than 0")
    return weight

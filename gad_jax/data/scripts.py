"""Scripts (writing systems) of responses, by token: they show a drift into another language."""

import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def token_scripts(tokenizer: Any, vocabulary: int) -> Int[np.ndarray, " V"]:
    """Returns a number for the script of each token's first letter; 0 for a token without one.

    The script is the first word of the letter's Unicode name (LATIN, CJK, CYRILLIC, …), which is
    close to Unicode's script property. Pieces of a character that a byte-level tokenizer has split
    have no script.
    """
    texts = tokenizer.batch_decode([[token] for token in range(vocabulary)])
    numbers: dict[str, int] = {"": 0}
    scripts = [numbers.setdefault(_script(text), len(numbers)) for text in texts]
    return np.asarray(scripts, np.int32)


def drift(
    scripts: Int[np.ndarray, " V"], responses: Sequence[Any], teacher: Sequence[Any]
) -> float:
    """Returns how far the shares of scripts differ, from 0 (the same) to 1 (none in common).

    It is the total variation distance over the tokens with a script; 0 if one side has none.
    Example: the teacher writes 80 % LATIN and 20 % CJK, the student only LATIN: 0.2.
    """
    shares, wanted = _shares(scripts, responses), _shares(scripts, teacher)
    return float(np.abs(shares - wanted).sum() / 2) if shares.any() and wanted.any() else 0.0


def _shares(scripts: Int[np.ndarray, " V"], responses: Sequence[Any]) -> Float[np.ndarray, " K"]:
    counts = np.bincount(scripts[np.concatenate(responses)], minlength=scripts.max() + 1)[1:]
    return counts / max(counts.sum(), 1)


def _script(text: str) -> str:
    return next((_script_of(letter) for letter in text if letter.isalpha()), "")


@functools.cache
def _script_of(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0]


def main_script(text: str, letters: int = 200) -> str:
    """Returns the script that most of a text's first letters have; empty for none."""
    first = [letter for letter in text[: 5 * letters] if letter.isalpha()][:letters]
    counts = Counter(map(_script_of, first))
    return counts.most_common(1)[0][0] if counts else ""

"""What a tokenizer.json may ask for: some of it would abort the process or fill the memory.

The library that reads the file allocates what padding, replacements and templates ask for. Without
the memory it ends the process, and no `except` sees that.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError

MOST_TOKENS = 2**20
"""Tokens that padding may add: more than any context."""
MOST_GROWTH = 1000
"""Times that replacements may lengthen a text; SentencePiece's, of a blank, do not at all."""
_MOST_INSERTED = 4096
_MOST_DEPTH = 64


def check(path: Path) -> None:
    """Raises UserError for a tokenizer.json whose reading or use may end the process. Does nothing
    where there is none; what is not JSON is reported by the library."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except RecursionError:
        raise _refusal(path, "it is nested too deeply") from None
    except ValueError:
        return
    if not isinstance(content, dict):
        return
    padding = content.get("padding")
    if isinstance(padding, dict):
        strategy = padding.get("strategy")
        fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
        for count in (fixed, padding.get("pad_to_multiple_of")):
            if isinstance(count, int) and count > MOST_TOKENS:
                raise _refusal(path, f"its padding adds up to {count} tokens")
    growth = 1
    for part in _parts(content.get("normalizer"), path):
        growth = min(growth * _growth(part), 2**63)
        if growth > MOST_GROWTH:
            raise _refusal(
                path, f"its normalizer makes a text more than {MOST_GROWTH} times longer"
            )
    for part in _parts(content.get("post_processor"), path):
        if (inserted := _inserted(part)) > _MOST_INSERTED:
            raise _refusal(path, f"its post_processor adds {inserted} tokens to each text")


def _refusal(path: Path, why: str) -> UserError:
    return UserError(f"{path}: {why}, which no real tokenizer does; fetch the model again")


def _parts(value: Any, path: Path, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yields the steps of a normalizer or a post-processor, those of sequences too."""
    if depth > _MOST_DEPTH:
        raise _refusal(path, "it is nested too deeply")
    if isinstance(value, list):
        for part in value:
            yield from _parts(part, path, depth + 1)
    elif isinstance(value, dict):
        yield value
        for name in ("normalizers", "processors"):
            yield from _parts(value.get(name), path, depth + 1)


def _growth(part: dict[str, Any]) -> int:
    """Returns how many times longer a step may make a text: each character may be replaced."""
    texts = (part.get(name) for name in ("content", "prepend"))
    return max(1, *(len(text) for text in texts if isinstance(text, str)), 1)


def _inserted(part: dict[str, Any]) -> int:
    """Returns how many tokens a template adds."""
    special = part.get("special_tokens")
    tokens = special if isinstance(special, dict) else {}
    pieces = [piece for name in ("single", "pair") for piece in part.get(name) or ()]
    total = 0
    for piece in pieces:
        named = piece.get("SpecialToken") if isinstance(piece, dict) else None
        entry = tokens.get(named.get("id")) if isinstance(named, dict) else None
        ids = entry.get("ids") if isinstance(entry, dict) else None
        total += len(ids) if isinstance(ids, list) else 1
    return total

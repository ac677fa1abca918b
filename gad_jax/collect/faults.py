"""The faults and counts of a file of teacher text, in one pass that keeps numbers and no texts."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from gad_jax.base import redaction
from gad_jax.base.errors import UserError
from gad_jax.collect.check import FAULTS
from gad_jax.collect.duplicates import Overlap, near_duplicates, signature, words
from gad_jax.collect.refusals import is_refusal
from gad_jax.data import scripts, sources, thoughts
from gad_jax.data.sources.fields import BY_NAME, Fields
from gad_jax.data.sources.formats import parse
from gad_jax.data.sources.notes import Notes
from gad_jax.data.sources.rows import Invalid, Record, fold_reason, is_finished

_CUT = ("length", "max_tokens")
_REFUSED = (
    *("content_filter", "content_filtered", "refusal", "refused", "safety", "sensitive", "blocked"),
    *("prohibited_content", "recitation", "blocklist", "flagged", "moderation"),
)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")
_ENCODED_AT_ONCE = 1024


@dataclass
class Found:
    """The counts, and the faults of each line: a bit for each of `FAULTS`."""

    lines: int = 0
    responses: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    teachers: Counter[str] = field(default_factory=Counter)
    emails: int = 0
    thoughts: int = 0
    prompt_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    response_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    faults: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    notes: Notes = field(default_factory=Notes)
    """As which format the lines were read."""

    def count(self, fault: str) -> int:
        """Returns the lines that have a fault."""
        return int(np.sum(self.faults & _bit(fault) != 0))

    def kept(self, drop: Iterable[str]) -> np.ndarray:
        """Returns a mask of the lines that have none of these faults."""
        return self.faults & sum(map(_bit, drop)) == 0


def _bit(fault: str) -> int:
    return 1 << FAULTS.index(fault)


def check(
    records: Iterable[Record],
    count_tokens: Any,
    against: Overlap,
    skip_invalid: bool,
    fields: Fields = BY_NAME,
) -> Found:
    """Returns what is in the records; `count_tokens` returns the number of tokens of each text.

    `fields` says where prompt and response are, if the columns' names do not.
    A malformed record raises UserError; with `skip_invalid` it is only counted, and is no line.
    """
    found = Found()
    signatures, seen, faults = [], set(), []
    prompts: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    lines = _valid(records, found, skip_invalid, fields)
    while part := list(islice(lines, _ENCODED_AT_ONCE)):
        prompts.append(np.asarray(count_tokens([prompt for prompt, _, _ in part]), np.int64))
        texts = [text for _, responses, _ in part for text in responses]
        answers.append(np.asarray(count_tokens(texts) if texts else [], np.int64))
        for prompt, responses, record in part:
            whole = "\n".join([prompt, *responses])
            signatures.append(signature(whole))
            digest = hashlib.blake2b(" ".join(words(whole)).encode(), digest_size=12).digest()
            everything = all_text(record)
            bits = _faults(prompt, whole, responses, record, against, everything)
            faults.append(bits | (_bit("duplicate") if digest in seen else 0))
            seen.add(digest)
            _count(found, whole, responses, record, everything)
    if not faults:
        raise UserError("no line is valid; give a file with at least one row")
    found.faults = np.asarray(faults, np.uint8)
    near = near_duplicates(np.stack(signatures)) & (found.faults & _bit("duplicate") == 0)
    found.faults[near] |= _bit("near_duplicate")
    found.prompt_tokens, found.response_tokens = np.concatenate(prompts), np.concatenate(answers)
    return found


def valid(records: Iterable[Record], fields: Fields = BY_NAME) -> Iterator[tuple[Any, int]]:
    """Yields the valid records, which are the lines of `check`, in its order; with each the number
    of its responses."""
    lines = _valid(records, Found(), True, fields)
    return ((record, len(responses)) for _, responses, record in lines)


def _valid(
    records: Iterable[Record], found: Found, skip_invalid: bool, fields: Fields
) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yields the conversation as one text, the responses that are not empty, and the record."""
    for where, record in records:
        try:
            texts = _responses(record)
            held = (
                {**record, "teacher_response": list(texts) or None} if texts is not None else record
            )
            row = parse(where, held, False, fields, found.notes)
        except Invalid as problem:
            if not skip_invalid:
                if problem.columns:
                    raise sources.wrong_columns(where, record, problem) from None
                raise UserError(
                    f"{where}: {problem}; mend the row or pass --skip_invalid"
                ) from None
            found.invalid[problem.reason] += 1
            continue
        yield "\n".join(message["content"] for message in row.messages), row.responses, record


def _responses(record: Any) -> tuple[str, ...] | None:
    """Returns a record's responses that are not empty; None if it is not an object."""
    if not isinstance(record, dict):
        return None
    given = record.get("teacher_response")
    several = given if isinstance(given, list) else [given]
    return tuple(text for text in several if not (text is None or _blank(text)))


def _blank(text: Any) -> bool:
    return isinstance(text, str) and not text.strip()


def all_text(record: Any) -> str:
    """Returns every text of a record, of its columns and within them, with the names."""
    return "\n".join(_texts(record))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _faults(
    prompt: str,
    whole: str,
    responses: Sequence[str],
    record: Any,
    against: Overlap,
    everything: str,
) -> int:
    reason = fold_reason(str(record.get("finish_reason") or ""))
    has = {
        "cut": reason in _CUT
        or not (is_finished(reason) or reason in _REFUSED)
        or any(not thoughts.split_teacher(text).finished for text in responses),
        "refused": reason in _REFUSED or any(map(is_refusal, responses)),
        "empty": not responses,
        "overlap": against.whole(prompt) or against.shares(whole),
        "secret": redaction.looks_secret(everything),
    }
    return sum(_bit(fault) for fault, there in has.items() if there)


def _count(
    found: Found, whole: str, responses: Sequence[str], record: Any, everything: str
) -> None:
    found.lines += 1
    found.responses += len(responses)
    found.reasons[str(record.get("finish_reason") or "not said")] += 1
    found.scripts[scripts.main_script(whole) or "none"] += 1
    found.thoughts += any(thoughts.split_teacher(text).answer != text for text in responses)
    found.emails += EMAIL.search(everything) is not None
    if teacher := record.get("teacher"):
        found.teachers[str(teacher)] += 1

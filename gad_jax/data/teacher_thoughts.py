"""Thoughts in a file's teacher text: counted, and dropped or kept. Tags are in `thoughts.py`."""

import dataclasses
from collections.abc import Sequence

from gad_jax.base.errors import UserError
from gad_jax.data import thoughts
from gad_jax.data.sources.rows import Row, Rows


def part(rows: Rows, drop: bool, prompts_closed: bool) -> tuple[Rows, int]:
    """Returns the rows, without thoughts if they are to be dropped, and how many responses have
    some.

    A response that ends inside its thought has no answer: it counts as unfinished, and is left out
    either way. So is a row without any other response. Rejected ones are treated alike. Raises
    UserError when no row is left, and when thoughts are to be kept after prompts that end in a
    closed thought.
    """
    kept: list[Row] = []
    found = unfinished = 0
    for row in rows:
        if row.rejected:
            rejected = _answered(row.rejected, drop)
            unfinished += len(row.rejected) - len(rejected)
            if not rejected:
                continue
            row = dataclasses.replace(row, rejected=rejected)
        parts = [thoughts.split_teacher(text) for text in row.responses]
        thinking = [text != one.answer for text, one in zip(row.responses, parts, strict=True)]
        found += sum(thinking)
        if not any(thinking):
            kept.append(row)
            continue
        pairs = zip(row.responses, parts, thinking, row.complete, strict=True)
        answered = [pair for pair in pairs if not pair[2] or pair[1].answer.strip()]
        unfinished += len(parts) - len(answered)
        texts = tuple(one.answer if drop else text for text, one, *_ in answered)
        if texts:
            complete = tuple(ended for *_, ended in answered)
            kept.append(dataclasses.replace(row, responses=texts, complete=complete))
    if found and not drop and prompts_closed:
        raise UserError(
            f"{rows.name}: {found} responses have thoughts, and the student's prompt ends in a "
            "closed thought; leave out --data.thoughts=keep, or the argument in "
            "--data.chat_template_kwargs that closes it"
        )
    if rows.rows and not kept:
        raise UserError(
            f"{rows.name}: no response has an answer after its thoughts; collect them with a "
            "larger --max_new_tokens"
        )
    left = dataclasses.replace(rows, rows=tuple(kept), unfinished=rows.unfinished + unfinished)
    return left, found


def _answered(texts: Sequence[str], drop: bool) -> tuple[str, ...]:
    """Returns the texts that have an answer, without their thoughts if these are to be dropped."""
    answers = [thoughts.split_teacher(text).answer for text in texts]
    pairs = zip(texts, answers, strict=True)
    return tuple(answer if drop else text for text, answer in pairs if answer.strip())

"""The rejected answers of preference data: texts, messages or a whole conversation.

They must answer the prompt that the chosen answer has.
"""

from collections.abc import Sequence
from typing import Any

from gad_jax.data.sources import answers, conversations
from gad_jax.data.sources.conversations import Turn
from gad_jax.data.sources.fields import find, from_json
from gad_jax.data.sources.rows import Invalid

ADVICE = (
    "name the column of the rejected answers with --data.rejected=FIELD, or leave out "
    "--dpo.rejected=column, and the student's own answers take their place"
)


def read(record: dict[str, Any], path: str, prompt: list[Turn]) -> tuple[str, ...]:
    """Returns the rejected answers to a prompt at a path; none without a path. Raises Invalid."""
    if not path:
        return ()
    try:
        value = from_json(find(record, path, "--data.rejected"))
    except Invalid:
        raise Invalid(f"no {path!r}", columns=True, advice=ADVICE) from None
    turns = conversations.transcript(value) if isinstance(value, str) else []
    if turns and turns[-1]["role"] == "assistant" and _said(turns[:-1]) == _said(prompt):
        return (turns[-1]["content"],)
    asked, found = answers.read(path, value, prompt)
    if _said(asked) != _said(prompt):
        raise Invalid(f"{path!r} answers another prompt than the chosen answer")
    return tuple(answer.text for answer in found)


def _said(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """Returns the turns without what comes from a column of its own: the system's."""
    return [(one["role"], one["content"].strip()) for one in turns if one["role"] != "system"]

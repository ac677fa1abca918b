"""The prompt of a record: a text column with its material, and turns that stand before it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from gad_jax.data.sources import conversations
from gad_jax.data.sources.conversations import Turn, turn
from gad_jax.data.sources.fields import Columns, fold, from_json
from gad_jax.data.sources.rows import Invalid, collected_key, is_blank, kind, text

OWN = "teacher_response"
MAIN = ("instruction", "prompt", "question", "query", "problem")
_OTHER_MAIN = ("user", "human", "input", "inputs", "text")
_LISTS = ("turns", "questions")
MATERIAL = ("input", "context", "passage")
_SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
_HISTORY = ("history", "chat_history", "conversation_history", "dialogue_history")
_PARTS_OF_A_PROMPT = ("choices", "options", "document", "documents", "article")


class Prompt(NamedTuple):
    """The prompt of text columns. `several` are the questions of a list, which are turns."""

    key: str
    turns: list[Turn]
    several: list[str]


def of_texts(columns: Columns) -> Prompt:
    """Returns the prompt in the first text column that may hold one; raises Invalid."""
    key = _key(columns)
    value = columns.take(key)
    if key in _LISTS:
        asked = [text(repr(key), one) for one in (value if isinstance(value, list) else [value])]
        if not asked:
            raise Invalid(f"{key!r} is empty")
        user = turn("user", asked[0])
        return Prompt(key, lead(columns, key, [user]), asked if len(asked) > 1 else [])
    turns = of_value(repr(key), value, transcripts=OWN not in columns)
    for given in _material(columns, key):
        if given.strip() not in turns[-1]["content"]:
            turns[-1] = turn("user", f"{turns[-1]['content']}\n\n{given}")
    return Prompt(key, lead(columns, key, turns), [])


def _key(columns: Columns) -> str:
    filled = columns.filled(MAIN)
    own = OWN in columns
    if len(filled) > 1 and not own:
        _refuse_several(columns, filled)
    if own:
        filled = [name for name in filled if name in ("instruction", "prompt")] or filled
    candidates = [*filled, *[name for name in MAIN if name in columns], *_LISTS, *_OTHER_MAIN]
    key = next((name for name in candidates if name in columns), None)
    if key is None:
        raise Invalid("no 'messages', 'content' or 'prompt'", columns=True)
    if not own:
        for name in columns.filled(_PARTS_OF_A_PROMPT):
            value = columns.values[name]
            if isinstance(value, str | list) and not _are_responses(value):
                raise Invalid(f"column {name!r} may belong to the prompt", columns=True)
    return key


def _are_responses(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(one, dict) and "message" in one for one in value
    )


def _refuse_several(columns: Columns, names: list[str]) -> None:
    """Raises Invalid where two columns may be the prompt and neither is the other in a wrapper."""
    first = columns.values[names[0]]
    for name in names[1:]:
        other = columns.values[name]
        same = other == first
        wrapped = (
            names[0] == "instruction"
            and isinstance(first, str)
            and isinstance(other, str)
            and first.strip() in other
        )
        if not (same or wrapped):
            raise Invalid(f"{names[0]!r} and {name!r} may both be the prompt", columns=True)
        columns.repeated.add(name)


def _material(columns: Columns, key: str) -> list[str]:
    """Returns the texts that a question is about.

    That is Alpaca's `input`, Dolly's `context`, or the input of SelfInst's first instance.
    """
    found = []
    for name in columns.filled(MATERIAL):
        if name == key or (OWN in columns and not isinstance(columns.values[name], str)):
            continue
        if not isinstance(columns.values[name], str):
            raise Invalid(
                f"{name!r} is not a text", f" but {kind(columns.values[name])}", columns=True
            )
        found.append(text(repr(name), columns.take(name)))
    instances = columns.values.get("instances")
    if key == "instruction" and isinstance(instances, list) and instances:
        columns.take("instances")
        given = instances[0].get("input") if isinstance(instances[0], dict) else None
        if isinstance(given, str) and given.strip() and not found:
            found.append(text("'input'", given))
    return found


def of_value(name: str, value: Any, *, transcripts: bool = False) -> list[Turn]:
    """Returns the turns of a prompt that is a text or a list of messages; raises Invalid."""
    messages = from_json(value)
    if conversations.are_messages(messages):
        return conversations.read(name.strip("'"), messages)
    content = text(name, value, columns=True)
    if transcripts and content.rstrip().endswith((":", ">:")):
        turns = conversations.transcript(content)
        if turns and turns[-1]["role"] == "user":
            return turns
    return [turn("user", content)]


def lead(columns: Columns, key: str, turns: list[Turn]) -> list[Turn]:
    """Returns the turns behind the system prompt and the history in other columns.

    A collected response's system prompt was the teacher's alone. Raises Invalid where two system
    prompts differ.
    """
    if collected_key(columns.record):
        columns.repeated.update((*_SYSTEM, *_HISTORY))
        return turns
    for name in columns.filled(_HISTORY):
        earlier = from_json(columns.take(name))
        if not is_blank(earlier) and earlier not in ("[]", "null"):
            at = int(turns[0]["role"] == "system")
            turns = [*turns[:at], *conversations.history(name, earlier), *turns[at:]]
    for name in columns.filled(_SYSTEM):
        label = repr(name)
        system = text(label, conversations.content_of(label, columns.take(name)))
        if turns[0]["role"] != "system":
            turns = [turn("system", system), *turns]
        elif turns[0]["content"].strip() != system.strip():
            raise Invalid(f"{name!r} and the system message in {key!r} differ")
    return turns


def refuse_other(columns: Columns, key: str, turns: list[Turn], names: Iterable[str]) -> None:
    """Raises Invalid where another column says something that the conversation does not.

    Data sets often give a prompt or an answer once more, alone or as the template renders it.
    """
    held = [one["content"].strip() for one in turns]
    asked = [one["content"].strip() for one in turns[:-1]]
    for name in columns.filled(names):
        if name in columns.used or fold(key) == name:
            continue
        value = from_json(columns.values[name])
        if isinstance(value, str):
            said = [value.strip()]
        elif isinstance(value, list) and all(isinstance(one, str) for one in value):
            said = [one.strip() for one in value]
        elif isinstance(value, list):
            said = [one["content"].strip() for one in conversations.read(name, value)]
        else:
            continue  # a number, such as a label
        whole = len(said) == 1 and all(one in said[0] for one in asked)
        if not whole and not all(any(one in turn for turn in held) for one in said):
            raise Invalid(f"{key!r} and {name!r} differ, and both may be meant", columns=True)
        columns.repeated.add(name)

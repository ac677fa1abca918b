"""How a record becomes a row: its columns say where the prompt is, and where the teacher's answer.

docs/data.md lists the formats. A conversation that ends with an assistant turn holds both. Else the
prompt is a conversation or a text, and the answer has a column of its own. Columns that say
something else about the prompt are used, or refused by name.
"""

from dataclasses import dataclass, field
from typing import Any

from gad_jax.data.sources import answers as answering
from gad_jax.data.sources import conversations, prompts, rejected
from gad_jax.data.sources.answers import Answer
from gad_jax.data.sources.conversations import Turn
from gad_jax.data.sources.fields import BY_NAME, Columns, Fields, find, fold, from_json
from gad_jax.data.sources.notes import NAMED, Notes, unused
from gad_jax.data.sources.prompts import OWN
from gad_jax.data.sources.rows import (
    Invalid,
    Row,
    finish_reason,
    is_blank,
    is_finished,
    kind,
    text,
)

CONVERSATIONS = (
    *("messages", "content", "conversations", "conversation", "dialogue", "dialog", "chat"),
    *("contents", "data"),
)
ANSWERS = (
    *("response", "responses", "output", "outputs", "completion", "completions", "answer"),
    *("answers", "solution", "chosen", "choices", "candidates", "targets"),
)
_WEAK_ANSWERS = ("target", "assistant", "gpt", "bot", "reply")
_MEDIA = ("tools", "functions", "images", "image", "audio", "audios", "video", "videos")
_IDS = ("id", "question_id", "custom_id", "conversation_id", "prompt_id")


@dataclass
class Reading:
    """What a record says: the prompt, the answers, and in words where they stand.

    `label` is empty for the project's own form. `answer` is the column of the answers, if they have
    one. `left_out` are fields of messages that are not used.
    """

    prompt: list[Turn]
    answers: list[Answer]
    label: str = ""
    answer: str = ""
    left_out: set[str] = field(default_factory=set)


def parse(
    where: str,
    record: Any,
    need_response: bool = True,
    fields: Fields = BY_NAME,
    notes: Notes | None = None,
) -> Row:
    """Returns the row of a raw record, and notes its format; raises Invalid."""
    if isinstance(record, Invalid):
        raise record
    if not isinstance(record, dict):
        raise Invalid("not a JSON object", f" but {kind(record)}")
    columns = Columns(record)
    columns.values.pop(fold(fields.rejected), None)  # it is no other answer
    if fields.prompt or fields.response:
        reading = _named(columns, fields, need_response)
    else:
        _refuse_what_is_not_text(columns, need_response)
        reading = _detected(columns, need_response)
    reason = finish_reason(record)
    ended = is_finished(reason)
    if notes is not None:
        parts = [name for name in columns.used if name != reading.answer]
        notes.add(reading.label, parts, [*unused(columns), *sorted(reading.left_out)])
        for one in (reason, *(answer.reason for answer in reading.answers)):
            if one is not None:
                notes.add_reason(one)
    return Row(
        messages=tuple(reading.prompt),
        responses=tuple(answer.text for answer in reading.answers),
        id=_id(record, where),
        complete=tuple(ended and answer.complete for answer in reading.answers),
        rejected=rejected.read(record, fields.rejected, reading.prompt),
    )


def _id(record: dict[str, Any], where: str) -> str:
    for value in (record.get(name) for name in _IDS):
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            return text("'id'", value)
    return where


def _refuse_what_is_not_text(columns: Columns, need: bool) -> None:
    for name in columns.filled(_MEDIA):
        if columns.values[name] in ("[]", "{}", "null", "None"):
            columns.repeated.add(name)
            continue
        raise Invalid(
            f"column {name!r} is more than text, and only text is read",
            columns=True,
            advice=f"remove the column {name!r} if the answers do not depend on it",
        )
    marks = (columns.values.get("label"), columns.values.get("kto_tag"))
    if need and OWN not in columns and any(mark is False for mark in marks):
        raise Invalid("its label is false, which marks a bad answer")
    if need and isinstance(columns.values.get("labels"), list) and "completions" in columns:
        raise Invalid("'completions' are steps with 'labels', not answers", columns=True)
    single = {"role", "text"} <= set(columns.values) or {"role", "content"} <= set(columns.values)
    if single and OWN not in columns and isinstance(columns.values["role"], str):
        raise Invalid(
            "one message of a conversation, not all of it",
            columns=True,
            advice="join the messages of each conversation in one row, under 'messages'",
        )


def _detected(columns: Columns, need: bool) -> Reading:
    for key in CONVERSATIONS:
        if _is_conversation(columns, key):
            return _conversation(columns, key, need)
    for key in ("chosen", "text"):
        if not columns.filled((*prompts.MAIN, OWN)) and _is_conversation(columns, key):
            return _conversation(columns, key, need)
    return _from_texts(columns, need)


def _is_conversation(columns: Columns, key: str) -> bool:
    value = columns.values.get(key)
    if value is None or key in ("messages", "content"):
        return value is not None
    value = from_json(value)
    if isinstance(value, str):
        return bool(conversations.transcript(value))
    return isinstance(value, list) or (isinstance(value, dict) and key != "data")


def _conversation(columns: Columns, key: str, need: bool) -> Reading:
    """Returns what a column with a list of messages holds, with what stands next to it."""
    value = columns.take(key)
    turns = prompts.lead(columns, key, conversations.read(key, value))
    spoken = from_json(value)
    if OWN in columns or turns[-1]["role"] != "assistant":
        if turns[-1]["role"] != "user":
            raise Invalid(f"{key!r} does not end with a user message")
        if need and len(turns) > 2 and not _answer_names(columns):
            raise Invalid(f"{key!r} ends with a user message, which has no answer")
        reading = _with_answers(columns, turns, need, key)
    else:
        if need and conversations.is_left_out(spoken):
            raise Invalid(f"the last message in {key!r} is marked as not to be trained on")
        others = (*prompts.MAIN, *prompts.MATERIAL, *(ANSWERS if need else ()))
        prompts.refuse_other(columns, key, turns, others)
        label = f"{_format(key, spoken)}: the last assistant turn is the teacher's answer"
        reading = Reading(turns[:-1], [Answer(turns[-1]["content"])], label)
    if not reading.prompt or reading.prompt[-1]["role"] != "user":
        raise Invalid(f"{key!r} has no user message before the last assistant message")
    reading.left_out = conversations.left_out(spoken)
    return reading


def _format(key: str, value: Any) -> str:
    if key == "chosen":
        return "DPO"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict) and "from" in first:
        return "ShareGPT"
    if isinstance(first, dict) and "role" in first:
        return "OpenAI messages" + (f" in {key!r}" if key != "messages" else "")
    return f"a conversation in {key!r}"


def _from_texts(columns: Columns, need: bool) -> Reading:
    """Returns the prompt of a text column and what belongs to it, and its answers."""
    found = prompts.of_texts(columns)
    if found.several:
        return _of_turns(columns, found, need)
    if OWN not in columns and not need and found.key == "instruction":
        # Dolly, SelfInst and their like: people wrote the answers, so they are no teacher's.
        names = _answer_names(columns)
        columns.repeated.update(names)
        flags = f", unless --data.response={names[0]} says that a teacher wrote it" if names else ""
        label = f"instructions: {names[0]} is not used{flags}" if names else ""
        return Reading(found.turns, [], label)
    return _with_answers(columns, found.turns, need, found.key)


def _of_turns(columns: Columns, found: prompts.Prompt, need: bool) -> Reading:
    """Returns the conversation of a list of questions, and of answers if there are as many."""
    asked = found.several
    reading = _with_answers(columns, found.turns, need, found.key)
    if not reading.answers:  # a later turn would need the student's answer to this one
        return Reading(found.turns, [], f"prompts: the first of {found.key!r} is the prompt")
    if len(asked) != len(reading.answers):
        raise Invalid(
            f"{found.key!r} and {reading.answer!r} differ in length",
            f": {len(asked)} questions and {len(reading.answers)} answers",
        )
    turns = list(found.turns)
    for question, answer in zip(asked[1:], reading.answers[:-1], strict=True):
        turns += [
            conversations.turn("assistant", answer.text),
            conversations.turn("user", question),
        ]
    label = "turns: the last answer is the teacher's, the others are part of the prompt"
    return Reading(turns, reading.answers[-1:], label, reading.answer)


def _answer_names(columns: Columns) -> list[str]:
    """Returns the columns that may hold the answer."""
    if OWN in columns:
        return [OWN]
    lists = ("choices", "candidates")
    names = [
        name
        for name in columns.filled(ANSWERS)
        if name not in lists or answering.is_responses(columns.values[name])
    ]
    names = names or columns.filled(_WEAK_ANSWERS)
    return [name for name in names if name not in columns.used]


def _with_answers(columns: Columns, prompt: list[Turn], need: bool, asked: str) -> Reading:
    """Returns the prompt with the answers of their own column."""
    names = _answer_names(columns)
    if names == [OWN] and not need and is_blank(columns.values[OWN]):
        return Reading(prompt, [])
    if names == [OWN]:
        return Reading(prompt, answering.of_texts(OWN, columns.take(OWN)), "", OWN)
    if not names:
        empty = [name for name in (*ANSWERS, *_WEAK_ANSWERS) if name in columns]
        if need and empty and empty[0] not in columns.used:
            text(repr(empty[0]), columns.values[empty[0]])
        if need:
            raise Invalid(f"no {OWN!r}", columns=True)
        return Reading(prompt, [])
    try:
        longer, answers = answering.read(names[0], columns.take(names[0]), prompt)
        for other in names[1:]:
            if answering.read(other, columns.values[other], prompt) != (longer, answers):
                raise Invalid(
                    f"{names[0]!r} and {other!r} differ, and both may be the answer", columns=True
                )
            columns.repeated.add(other)
    except Invalid:
        if need:
            raise
        columns.used.pop(names[0])
        return Reading(prompt, [])
    if longer and longer[-1]["role"] != "user":
        raise Invalid(f"{names[0]!r} has no user message before the last assistant message")
    label = f"{_pair_name(asked, names[0])}: {names[0]} is the teacher's answer"
    return Reading(longer, answers, label, names[0])


def _pair_name(asked: str, answer: str) -> str:
    if answer == "chosen":
        return "DPO"
    names = {("instruction", "output"): "Alpaca", ("instruction", "response"): "Dolly"}
    return names.get((asked, answer), f"{asked} and {answer}")


def _named(columns: Columns, fields: Fields, need: bool) -> Reading:
    """Returns the reading of the columns that the flags name."""
    if fields.prompt:
        value = find(columns.record, fields.prompt, "--data.prompt")
        _use(columns, fields.prompt)
        turns = prompts.of_value(repr(fields.prompt), value)
        turns = prompts.lead(columns, fields.prompt, turns)
    else:
        turns = _detected(columns, need=False).prompt
        columns.used = {name: None for name in columns.used if name not in ANSWERS}
    if fields.response:
        reading = _named_answer(columns, fields.response, turns, need)
    elif turns[-1]["role"] == "assistant":
        label = f"{NAMED}: the last assistant turn is the teacher's answer"
        reading = Reading(turns[:-1], [Answer(turns[-1]["content"])], label)
    else:
        reading = _with_answers(columns, turns, need, fields.prompt)
    if not reading.prompt or reading.prompt[-1]["role"] != "user":
        raise Invalid("the prompt does not end with a user message")
    return reading


def _named_answer(columns: Columns, path: str, turns: list[Turn], need: bool) -> Reading:
    """Returns the reading with the answer at a path, which takes the place of a last one there."""
    turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    answers: list[Answer] = []
    try:
        value = find(columns.record, path, "--data.response")
        _use(columns, path)
        turns, answers = answering.read(path, value, turns)
    except Invalid:
        if need:
            raise
    root = next(reversed(columns.used), "")
    return Reading(turns, answers, f"{NAMED}: {path} is the teacher's answer", root)


def _use(columns: Columns, path: str) -> None:
    """Counts the column that a path begins with as used."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        columns.take(fold(".".join(parts[:count])))

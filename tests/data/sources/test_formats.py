"""Rows in the forms of public data sets: the right prompt and answer of each, or why not."""

import json
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.sources.fields import Fields
from gad_jax.data.sources.formats import parse
from gad_jax.data.sources.notes import Notes
from gad_jax.data.sources.rows import Invalid

Q, A = "Why is the sky blue?", "Air scatters blue light more than red."
USER, ASSISTANT = {"role": "user", "content": Q}, {"role": "assistant", "content": A}
HUMAN, GPT = {"from": "human", "value": Q}, {"from": "gpt", "value": A}
GREETING = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SYSTEM = {"role": "system", "content": "Be brief."}
PARTS = [{"type": "text", "text": "Why is the "}, {"type": "text", "text": "sky blue?"}]
LAST_TURN = "the last assistant turn is the teacher's answer"
REPLY = {"id": "c", "choices": [{"index": 0, "message": ASSISTANT, "finish_reason": "stop"}]}

# Name → row, earlier turns, the format's name. All ask Q and answer A.
SAME: dict[str, tuple[dict[str, Any], list[dict[str, str]], str]] = {
    "OpenAI": ({"messages": [USER, ASSISTANT]}, [], "OpenAI messages: " + LAST_TURN),
    "OpenAI, longer": (
        {"messages": [SYSTEM, *GREETING, USER, ASSISTANT]},
        [SYSTEM, *GREETING],
        "OpenAI messages: ",
    ),
    "developer": ({"messages": [SYSTEM | {"role": "developer"}, USER, ASSISTANT]}, [SYSTEM], ""),
    "parts": (
        {"messages": [USER | {"content": PARTS}, ASSISTANT | {"content": [{"text": A}]}]},
        [],
        "OpenAI messages: ",
    ),
    "no tools": (
        {"messages": [USER, ASSISTANT | {"tool_calls": None, "name": None}], "tools": []},
        [],
        "OpenAI messages: ",
    ),
    "no tools, in a text": ({"messages": [USER, ASSISTANT], "tools": "null"}, [], "OpenAI"),
    "JSON in a text": ({"messages": json.dumps([USER, ASSISTANT])}, [], "OpenAI messages: "),
    "Python in a text": ({"messages": repr([USER, ASSISTANT])}, [], "OpenAI messages: "),
    "lists of fields": (
        {"conversations": {"from": ["human", "gpt"], "value": [Q, A]}},
        [],
        "a conversation in 'conversations': ",
    ),
    "ShareGPT": ({"id": "a_0", "conversations": [HUMAN, GPT]}, [], "ShareGPT: " + LAST_TURN),
    "ShareGPT, other names": (
        {
            "conversation": [
                {"from": "System", "value": "Be brief."},
                {"from": "user", "value": "Hi"},
                {"from": "bing", "value": "Hello"},
                HUMAN,
                GPT | {"from": "chatgpt"},
            ]
        },
        [SYSTEM, *GREETING],
        "ShareGPT: ",
    ),
    "ShareGPT and system": (
        {"conversations": [HUMAN, GPT], "system": "Be brief.", "tools": "[]"},
        [SYSTEM],
        f"ShareGPT: {LAST_TURN}; prompt: conversations, system",
    ),
    "Gemini": (
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": Q}]},
                {"role": "model", "parts": [{"text": A}]},
            ],
        },
        [SYSTEM],
        "",
    ),
    "Alpaca": ({"instruction": Q, "input": "", "output": A}, [], "Alpaca: output is the teacher"),
    "Alpaca with a rendered text": (
        {"instruction": Q, "input": "", "output": A, "text": f"Below is … {Q} … {A}"},
        [],
        "Alpaca: ",
    ),
    "Alpaca with turns": (
        {
            "system": "Be brief.",
            "instruction": Q,
            "input": "",
            "output": A,
            "history": [["Hi", "Hello"]],
        },
        [SYSTEM, *GREETING],
        "Alpaca: output is the teacher's answer; prompt: instruction, history, system",
    ),
    "history as messages": (
        {"question": Q, "answer": A, "history": GREETING},
        GREETING,
        "question and answer: answer is the teacher's answer; prompt: question, history",
    ),
    "Dolly": (
        {"instruction": Q, "context": "", "response": A, "category": "open_qa"},
        [],
        "Dolly: response is the teacher's answer",
    ),
    "prompt, completion": ({"prompt": Q, "completion": A}, [], "prompt and completion: "),
    "prompt, response": ({"prompt": Q, "response": A}, [], "prompt and response: "),
    "prompt, responses": ({"prompt": Q, "responses": [A]}, [], "prompt and responses: "),
    "prompt, answer": ({"prompt": Q, "answer": A}, [], "prompt and answer: "),
    "TRL": (
        {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
        [SYSTEM],
        "prompt and completion: ",
    ),
    "TRL, longer": (
        {"prompt": GREETING[:1], "completion": [GREETING[1], USER, ASSISTANT]},
        GREETING,
        "prompt and completion: ",
    ),
    "KTO": ({"prompt": Q, "completion": A, "label": True}, [], "prompt and completion: "),
    "question": ({"question": Q, "answer": A}, [], "question and answer: "),
    "query": ({"query": Q, "response": A}, [], "query and response: "),
    "input": ({"input": Q, "output": A}, [], "input and output: "),
    "FLAN": ({"inputs": Q, "targets": A}, [], "inputs and targets: "),
    "problem": ({"problem": Q, "solution": A}, [], "problem and solution: "),
    "OpenOrca": (
        {"id": "flan.1", "system_prompt": "Be brief.", "question": Q, "response": A},
        [SYSTEM],
        "question and response: response is the teacher's answer; prompt: question, system_prompt",
    ),
    "capitals": ({"INSTRUCTION": Q, "RESPONSE": A, "SOURCE": "x"}, [], "Dolly: "),
    "spreadsheet": ({" Question ": Q, "Teacher Response": A}, [], ""),
    "DPO": ({"prompt": Q, "chosen": A, "rejected": "No."}, [], "DPO: chosen is the teacher's"),
    "DPO messages": (
        {"prompt": Q, "chosen": [USER, ASSISTANT], "rejected": [USER, USER]},
        [],
        "DPO: chosen is the teacher's answer",
    ),
    "DPO messages alone": ({"chosen": [USER, ASSISTANT], "rejected": []}, [], "DPO: " + LAST_TURN),
    "DPO, three times": (
        {"prompt": Q, "messages": [USER, ASSISTANT], "chosen": [USER, ASSISTANT]},
        [],
        "OpenAI messages: ",
    ),
    "DPO, one message": ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}, [], "DPO: "),
    "DPO, Orca": ({"system": "Be brief.", "question": Q, "chosen": A}, [SYSTEM], "DPO: "),
    "DPO, transcript": (
        {"chosen": f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {Q}\n\nAssistant: {A}"},
        GREETING,
        "DPO: ",
    ),
    "DPO, transcript of the prompt": (
        {"prompt": f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {Q}\n\nAssistant:", "chosen": A},
        GREETING,
        "DPO: ",
    ),
    "guanaco": ({"text": f"### Human: {Q}### Assistant: {A}"}, [], "a conversation in 'text': "),
    "OIG": ({"text": f"<human>: {Q}\n<bot>: {A}", "metadata": {}}, [], "a conversation in 'text'"),
    "Magpie": (
        {"uuid": "x", "instruction": Q, "response": A, "conversations": [HUMAN, GPT]},
        [],
        "ShareGPT: ",
    ),
    "LMSYS": (
        {"conversation_id": "x", "model": "m", "conversation": [USER, ASSISTANT], "turn": 1},
        [],
        "OpenAI messages in 'conversation': ",
    ),
    "WildChat": (
        {
            "conversation_hash": "h",
            "conversation": [
                USER | {"toxic": False, "country": "Chad", "turn_identifier": 1},
                ASSISTANT | {"toxic": True, "country": None, "redacted": False},
            ],
            "toxic": True,
            "openai_moderation": [{"flagged": True}],
            "language": "English",
        },
        [],
        "OpenAI messages in 'conversation': ",
    ),
    "UltraChat": (
        {"prompt": Q, "prompt_id": "x", "messages": [USER, ASSISTANT]},
        [],
        f"OpenAI messages: {LAST_TURN}",
    ),
    "UltraChat, raw": (
        {"id": "0", "data": ["Hi", "Hello", Q, A]},
        GREETING,
        "a conversation in 'data': ",
    ),
    "pairs": (
        {"conversation": [{"human": "Hi", "assistant": "Hello"}, {"human": Q, "assistant": A}]},
        GREETING,
        "a conversation in 'conversation': ",
    ),
    "turns": (
        {"turns": ["Hi", Q], "teacher_response": ["Hello", A]},
        GREETING,
        "turns: the last answer is the teacher's, the others are part of the prompt",
    ),
    "turns of other names": ({"questions": ["Hi", Q], "answers": ["Hello", A]}, GREETING, "turns"),
    "an API's response": ({"messages": [USER], "response": REPLY}, [], "messages and response: "),
    "an answer of the API Messages": (
        {"prompt": Q, "response": {"content": [{"text": A}], "stop_reason": "stop"}},
        [],
        "prompt and response: ",
    ),
    "generate": ({"id": "1", "messages": [USER], "responses": [A]}, [], "messages and responses: "),
    "own": ({"messages": [SYSTEM, USER], "teacher_response": A}, [SYSTEM], ""),
    "own, with a system prompt": (
        {"prompt": Q, "teacher_response": A, "system": "Be brief."},
        [SYSTEM],
        "",
    ),
    "own, collected": (
        {
            "key": "k", "sample": 0, "id": "k", "messages": [USER], "teacher_response": A,
            "finish_reason": "stop", "system": "The teacher's alone.", "usage": {},
        },
        [],
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "earlier", "label"), SAME.values(), ids=SAME)
def test_the_prompt_and_the_answer_of_each_format(row, earlier, label) -> None:
    notes = Notes()
    found = parse("a:1", row, notes=notes)
    assert found.messages == (*earlier, USER)
    assert found.responses == (A,)
    assert found.complete == (True,)
    said = " ".join(notes.lines("a"))
    assert said.startswith(f"a: read as {label}") or not label
    assert "not used" not in said or "text" in row
    # The prompt is the same where only prompts are needed.
    assert parse("a:1", row, need_response=False).messages == found.messages


DIFFERENT: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "Alpaca with input": (
        {"instruction": "Translate.", "input": "Hund", "output": "dog"},
        "Translate.\n\nHund",
        ("dog",),
    ),
    "question and context": (
        {"question": "Who?", "context": "Ann came.", "answer": "Ann"},
        "Who?\n\nAnn came.",
        ("Ann",),
    ),
    "material in the prompt already": (
        {"prompt": "Read: Ann came. Who?", "context": "Ann came.", "answer": "Ann"},
        "Read: Ann came. Who?",
        ("Ann",),
    ),
    "MiniLLM": (
        {"prompt": "Below … Who? …", "instruction": "Who?", "input": "", "output": "Ann"},
        "Who?",
        ("Ann",),
    ),
    "two answers": ({"prompt": "x", "responses": ["a", "b"]}, "x", ("a", "b")),
    "an answer that is JSON": ({"prompt": "x", "completion": '[{"a": 1}]'}, "x", ('[{"a": 1}]',)),
    "a prompt that is JSON": ({"prompt": '[{"a": 1}]', "completion": "y"}, '[{"a": 1}]', ("y",)),
    "one turn, two answers": ({"turns": ["x"], "teacher_response": ["a", "b"]}, "x", ("a", "b")),
    "choices": (
        {"messages": [{"role": "user", "content": "x"}], "choices": [{"text": "a"}, {"text": "b"}]},
        "x",
        ("a", "b"),
    ),
}


@pytest.mark.parametrize(("row", "prompt", "responses"), DIFFERENT.values(), ids=DIFFERENT)
def test_prompts_of_several_columns_and_several_answers(row, prompt, responses) -> None:
    found = parse("a:1", row)
    assert found.messages == ({"role": "user", "content": prompt},)
    assert found.responses == responses


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a tool's turn": (
        {"messages": [USER, ASSISTANT, {"role": "tool", "content": "x"}]},
        "'messages' has an unknown role: 'tool' is not one of system, user, assistant (tools are",
    ),
    "a function of ShareGPT": (
        {"conversations": [HUMAN, {"from": "function_call", "value": "x"}]},
        "'conversations' has an unknown role: 'function_call' is not one of system, user, assi",
    ),
    "a call": (
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        "'messages' has tool calls, and only text is read",
    ),
    "no answer at the end": (
        {"conversations": [HUMAN, GPT, HUMAN]},
        "'conversations' ends with a user message, which has no answer",
    ),
    "no question": (
        {"conversations": [GPT]},
        "'conversations' has no user message before the last assistant message",
    ),
    "two answers in a row": (
        {"messages": [USER, ASSISTANT, ASSISTANT]},
        "'messages' has no user message before the last assistant message",
    ),
    "weight 0": (
        {"messages": [USER, ASSISTANT | {"weight": 0}]},
        "the last message in 'messages' is marked as not to be trained on",
    ),
    "a bad answer": (
        {"prompt": "x", "completion": "y", "label": False},
        "its label is false, which marks a bad answer",
    ),
    "two system prompts": (
        {"messages": [SYSTEM, USER, ASSISTANT], "system": "Be long."},
        "'system' and the system message in 'messages' differ",
    ),
    "turns of other lengths": (
        {"turns": ["a", "b"], "teacher_response": ["c", "d", "e"]},
        "'turns' and 'teacher_response' differ in length: 2 questions and 3 answers",
    ),
    "turns with one answer": (
        {"turns": ["a", "b"], "teacher_response": "c"},
        "'turns' and 'teacher_response' differ in length: 2 questions and 1 answers",
    ),
    "an empty output": ({"instruction": "x", "input": "", "output": ""}, "'output' is empty"),
    "no user in a list of parts": (
        {"messages": [USER | {"content": [{"type": "image_url"}]}, ASSISTANT]},
        "the content of a message in 'messages' has a part that is not text but 'image_url'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "said"), REFUSED.values(), ids=REFUSED)
def test_rows_that_are_refused(row, said) -> None:
    with pytest.raises(Invalid) as caught:
        parse("a:1", row)
    assert str(caught.value).startswith(said)
    assert not caught.value.columns


AMBIGUOUS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown names": ({"hue": "x", "shade": "y"}, "no 'messages', 'content' or 'prompt'"),
    "no answer": ({"prompt": "x", "shade": "y"}, "no 'teacher_response'"),
    "two answers": (
        {"problem": "x", "solution": "y", "answer": "z"},
        "'answer' and 'solution' differ, and both may be the answer",
    ),
    "two prompts": (
        {"instruction": "Answer as a pirate.", "question": "x", "answer": "z"},
        "'instruction' and 'question' may both be the prompt",
    ),
    "a conversation and an answer": (
        {"messages": [USER, ASSISTANT], "solution": "z"},
        "'messages' and 'solution' differ, and both may be meant",
    ),
    "a conversation and an instruction": (
        {"messages": [USER, ASSISTANT], "instruction": "Answer as a pirate."},
        "'messages' and 'instruction' differ, and both may be meant",
    ),
    "another conversation": (
        {"prompt": "x", "chosen": [USER, ASSISTANT]},
        "'chosen' holds another conversation than the prompt",
    ),
    "an object": (
        {"question": "x", "answers": {"text": ["y"], "answer_start": [0]}},
        "'answers' is not a text or a list of texts but an object with the fields text, answer_st",
    ),
    "choices": (
        {"question": "x", "choices": ["a", "b"], "answer": "a"},
        "column 'choices' may belong to the prompt",
    ),
    "a list as context": (
        {"question": "x", "context": ["a"], "answer": "a"},
        "'context' is not a text but a list",
    ),
    "tools": (
        {"messages": [USER, ASSISTANT], "tools": [{"name": "f"}]},
        "column 'tools' is more than text, and only text is read",
    ),
    "a number": ({"question": "x", "answer": 3}, "'answer' is not a text or a list of texts but a"),
    "objects": (
        {"question": "x", "answers": [{"text": "y", "score": 3}]},
        "'answers' is not a text or a list of texts but an object",
    ),
    "an object as prompt": (
        {"prompt": {"text": "x"}, "teacher_response": "y"},
        "'prompt' is not a text but an object",
    ),
    "steps": (
        {"prompt": "x", "completions": ["y", "z"], "labels": [True, False]},
        "'completions' are steps with 'labels', not answers",
    ),
    "a text for messages": ({"messages": "x"}, "'messages' is not a list of messages but a text"),
    "a tree's message": (
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "x"},
        "one message of a conversation, not all of it",
    ),
}


@pytest.mark.parametrize(("row", "said"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_columns_that_are_not_clear_are_named_with_the_flags(tmp_path, row, said) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps(row) + "\n") * 3)
    for skip in (False, True):
        with pytest.raises(UserError) as caught:
            sources.read(path, skip_invalid=skip)
        found = str(caught.value)
        assert found.startswith(f"a.jsonl:1: {said}")
        assert f"(its columns: {', '.join(row)}); " in found
        assert "--data.prompt=FIELD --data.response=FIELD" in found or any(
            advice in found for advice in ("remove the column 'tools'", "join the messages of each")
        )
        assert "drop the row" not in found
    # One such row among others is a row to drop.
    path.write_text(json.dumps(row) + '\n{"prompt": "x", "teacher_response": "y"}\n')
    with pytest.raises(UserError, match=r"; drop the row$"):
        sources.read(path)


NAMED: dict[str, tuple[dict[str, Any], Fields]] = {
    "two columns": ({"hue": Q, "shade": A}, Fields("hue", "shade")),
    "a path": (
        {"ask": {"text": Q}, "response": {"body": {"text": A}}},
        Fields("ask.text", "response.body.text"),
    ),
    "a path into lists": (
        {"q": Q, "reply": {"choices": [{"message": {"content": A}}]}},
        Fields("q", "reply.choices.0.message.content"),
    ),
    "a name with dots": ({"a.b": Q, "c.d": A}, Fields("a.b", "c.d")),
    "JSON in a cell": ({"q": json.dumps({"t": Q}), "shade": A}, Fields("q.t", "shade")),
    "the answer alone": ({"problem": Q, "solution": A, "answer": "3"}, Fields("", "solution")),
    "the prompt alone": ({"hue": Q, "response": A}, Fields("hue", "")),
    "a conversation": ({"spoken": [HUMAN, GPT], "answer": "3"}, Fields("spoken", "")),
    "a conversation and another answer": (
        {"messages": [USER, ASSISTANT | {"content": "No."}], "best": A},
        Fields("messages", "best"),
    ),
    "a conversation for both": (
        {"messages": [USER, ASSISTANT], "solution": "z"},
        Fields("messages", "messages"),
    ),
}


@pytest.mark.parametrize(("row", "fields"), NAMED.values(), ids=NAMED)
def test_columns_that_are_named(row, fields) -> None:
    found = parse("a:1", row, fields=fields)
    assert found.messages == (USER,)
    assert found.responses == (A,)
    assert parse("a:1", row, need_response=False, fields=fields).messages == (USER,)


def test_a_named_system_prompt_stays_and_a_missing_column_is_named(tmp_path) -> None:
    row = {"q": "x", "a": "y", "system": "Be brief."}
    assert parse("a:1", row, fields=Fields("q", "a")).messages[0] == SYSTEM
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"no 'z', which --data\.prompt names \(its columns: q, a,"):
        sources.read(path, prompt_field="z", response_field="a")


def test_the_bundled_rows_keep_their_columns() -> None:
    assert len(sources.read("bundled:heldout", prompt_field="q", response_field="a")) > 10


def test_answers_of_instruction_sets_are_no_teachers_in_an_evaluation(tmp_path) -> None:
    """People wrote those of Dolly and SelfInst; a flag says that a teacher did."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "x", "context": "", "response": "y", "category": "z"}')
    rows = sources.read(path, need_response=False)
    assert rows[0].responses == ()
    assert rows.notes == (
        f"{path}: read as instructions: response is not used, unless --data.response=response says "
        "that a teacher wrote it",
    )
    named = sources.read(path, need_response=False, response_field="response")
    assert named[0].responses == ("y",)
    assert sources.read(path)[0].responses == ("y",)


def test_an_id_may_come_twice_in_other_formats(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"id": "x", "conversations": [HUMAN, GPT]}
    path.write_text((json.dumps(row) + "\n") * 2)
    assert [row.id for row in sources.read(path)] == ["x", "a.jsonl:2"]


@pytest.mark.parametrize("reason", ["eos_token", "stop_sequence", "STOP", "COMPLETE", "end_turn"])
def test_reasons_of_servers_for_a_whole_answer(tmp_path, reason) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "x", "response": "y", "finish_reason": reason}))
    rows = sources.read(path)
    assert (len(rows), rows.unfinished) == (1, 0)
    assert "finish reasons" not in " ".join(rows.notes)


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "content-filter", "SAFETY", "error"])
def test_reasons_of_servers_for_a_part_of_an_answer(tmp_path, reason) -> None:
    path = tmp_path / "a.jsonl"
    message = {"role": "assistant", "content": "y"}
    choice = {"message": message, "finish_reason": reason}
    for row in (
        {"prompt": "x", "response": "y", "finish_reason": reason},
        {"prompt": "x", "response": {"choices": [choice]}},
    ):
        good = {"prompt": "x", "response": "z"}
        path.write_text(json.dumps(row) + "\n" + json.dumps(good))
        rows = sources.read(path)
        assert ([row.responses for row in rows], rows.unfinished) == ([("z",)], 1)
        kept = sources.read(path, keep_unfinished=True)
        assert [row.complete for row in kept] == [(False,), (True,)]


def test_an_unknown_reason_is_named_and_counts_as_finished(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"prompt": "x", "response": "y", "finish_reason": "sated"}
    path.write_text((json.dumps(row) + "\n") * 2)
    rows = sources.read(path)
    assert len(rows) == 2
    assert rows.notes[-1] == (f"{path}: unknown finish reasons, taken for finished: 'sated' (2)")


def test_samples_of_one_prompt_keep_their_ends(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {
            "key": "k",
            "sample": n,
            "prompt": "x",
            "teacher_response": str(n),
            "finish_reason": reason,
        }
        for n, reason in enumerate(["stop", "length", "stop"])
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    (row,) = sources.read(path, keep_unfinished=True)
    assert row.responses == ("0", "1", "2")
    assert row.complete == (True, False, True)
    (row,) = sources.read(path)
    assert row.responses == ("0", "2")
    assert row.complete == (True, True)

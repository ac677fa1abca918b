"""Preference data as it is published: where the rejected answer is, and what is refused."""

import json

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import pipeline, sources
from gad_jax.data.sources.fields import Fields
from gad_jax.data.sources.formats import parse
from gad_jax.data.sources.rows import Invalid

ASK = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}
MORE = [ASK, {"role": "assistant", "content": "Hm."}, {"role": "user", "content": "And?"}]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


FORMS = {
    "TRL, texts": {"prompt": "Why?", "chosen": "good", "rejected": "bad"},
    "TRL, messages": {"prompt": [ASK], "chosen": [said("good")], "rejected": [said("bad")]},
    "TRL, the prompt in both": {"chosen": [ASK, said("good")], "rejected": [ASK, said("bad")]},
    "UltraFeedback": {
        "prompt": "Why?",
        "prompt_id": "a",
        "chosen": [ASK, said("good")],
        "rejected": [ASK, said("bad")],
        "messages": [ASK, said("good")],
        "score_chosen": 8.5,
        "score_rejected": 7.0,
    },
    "a system message": {
        "system": "Be brief.",
        "question": "Why?",
        "chosen": "good",
        "rejected": "bad",
    },
    "a system message in one": {
        "chosen": [SYSTEM, ASK, said("good")],
        "rejected": [ASK, said("bad")],
    },
    "transcripts": {
        "chosen": "\n\nHuman: Why?\n\nAssistant: good",
        "rejected": "\n\nHuman: Why?\n\nAssistant: bad",
    },
    "several turns": {"chosen": [*MORE, said("good")], "rejected": [*MORE, said("bad")]},
    "JSON in cells": {
        "prompt": "Why?",
        "chosen": json.dumps([said("good")]),
        "rejected": json.dumps([said("bad")]),
    },
    "the project's own": {
        "messages": [ASK],
        "teacher_response": "good",
        "rejected": ["bad"],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_published_forms(name: str) -> None:
    row = parse("x:1", FORMS[name], fields=Fields(rejected="rejected"))
    assert (row.responses, row.rejected) == (("good",), ("bad",))
    assert row.messages[-1]["role"] == "user"
    # Without the field the row is what it always was.
    assert parse("x:1", FORMS[name]).rejected == ()


def test_columns_of_other_names() -> None:
    record = {"prompt": "Why?", "better": "good", "response": "bad"}
    row = parse("x:1", record, fields=Fields("", "better", "response"))
    assert (row.responses, row.rejected) == (("good",), ("bad",))
    record = {"prompt": "Why?", "completion": "good", "output": "bad"}
    assert parse("x:1", record, fields=Fields(rejected="output")).responses == ("good",)
    record = {"prompt": "Why?", "answers": {"good": "yes", "bad": ["no", "never"]}}
    row = parse("x:1", record, fields=Fields("", "answers.good", "answers.bad"))
    assert (row.responses, row.rejected) == (("yes",), ("no", "never"))


@pytest.mark.parametrize(
    ("rejected", "message"),
    [
        ([{"role": "user", "content": "Who?"}, said("bad")], "another prompt|another conversation"),
        ([ASK], "does not end with an assistant message"),
        ("", "'rejected' is empty"),
        (3, "is not a text or a list of texts"),
    ],
)
def test_what_is_no_rejected_answer(rejected: object, message: str) -> None:
    record = {"prompt": [ASK], "chosen": [said("good")], "rejected": rejected}
    with pytest.raises(Invalid, match=message):
        parse("x:1", record, fields=Fields(rejected="rejected"))


def test_rows_without_the_column_are_refused_with_advice(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{n}?", "response": "good"} for n in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"no 'rejected'.*columns: .*--data\.rejected=FIELD, or"):
        sources.read(path, rejected_field="rejected")
    with pytest.raises(UserError, match="no 'rejected'"):
        sources.read("bundled", rejected_field="rejected")


def test_the_fingerprint_knows_them() -> None:
    plain, other, third = (
        parse("x:1", {"prompt": "Why?", "chosen": "a", "rejected": text}, fields=Fields("", "", f))
        for text, f in (("b", ""), ("b", "rejected"), ("c", "rejected"))
    )
    assert len({pipeline._fingerprint([row], "") for row in (plain, other, third)}) == 3

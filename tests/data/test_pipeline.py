import dataclasses
import json

import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.chat import Chat
from gad_jax.data.pipeline import mix, prepare
from tests.data.rows import LIMITS, rows_of, user

# --- prepare ------------------------------------------------------------------------------------


def test_fifty_rows_with_one_of_each_trouble(chat, tmp_path):
    """A broken row, an empty answer and an over-long prompt are counted; the rest is untouched."""
    emoji = "family \U0001f468\u200d\U0001f469\u200d\U0001f467"
    lines = [json.dumps({"prompt": f"q{n}", "teacher_response": emoji}) for n in range(50)]
    lines[10] = lines[10][:-1]
    lines[20] = json.dumps({"prompt": "q20", "teacher_response": ""})
    lines[30] = json.dumps({"prompt": "long " * 500, "teacher_response": "a"})
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    rows = sources.read(path, skip_invalid=True)
    prepared = prepare(rows, chat, **LIMITS)
    assert len(prepared) == prepared.stats.rows == prepared.stats.responses == 47
    assert prepared.stats.skipped == {"not JSON": 1, "'teacher_response' is empty": 1}
    assert prepared.stats.dropped_long == 1
    assert prepared.stats.cut_responses == 0
    for index, row in enumerate(prepared.rows):
        np.testing.assert_array_equal(prepared.prompt(index), chat.encode_prompt(row.messages))
        (response,) = prepared.responses(index)
        assert chat.decode(response.tolist()) == emoji
        assert response[-1] == chat.end_token
    assert [row.id for row in prepared.rows if row.id.endswith((":11", ":21", ":31"))] == []
    for part in ("47 rows", "1 dropped for a long prompt", "1 skipped (not JSON)"):
        assert part in str(prepared.stats)


def test_rejected_answers_stay_with_their_rows(chat):
    rows = rows_of(*((f"q {'long ' * n}", "a") for n in range(3)))
    answers = (("bad",), ("no", "worse than that"), ("so",))
    kept = [
        dataclasses.replace(row, rejected=each)
        for row, each in zip(rows.rows, answers, strict=True)
    ]
    rows = dataclasses.replace(rows, rows=tuple(kept))
    longest = len(chat.encode_prompt(kept[1].messages))
    prepared = prepare(rows, chat, max_prompt_tokens=longest, max_response_tokens=2)

    def texts(prepared, index):
        return [chat.encode_response(text)[:2] for text in prepared.rows[index].rejected]

    for found in (prepared, prepared.select([1]), mix([prepared, prepared.select([1, 0])], [])):
        for index in range(len(found)):
            assert [one.tolist() for one in found.rejected(index)] == texts(found, index)
    assert [len(prepared.rejected(n)) for n in range(2)] == [1, 2]


def test_limits_are_inclusive(chat):
    prompt, response = chat.encode_prompt(user("Hello there")), chat.encode_response("Goodbye now")
    rows = rows_of(("Hello there", "Goodbye now"))
    whole = prepare(rows, chat, max_prompt_tokens=len(prompt), max_response_tokens=len(response))
    assert whole.prompt(0).tolist() == prompt
    assert whole.responses(0)[0].tolist() == response
    assert whole.stats.cut_responses == 0
    assert whole.prompt(0).dtype == whole.responses(0)[0].dtype == np.int32
    with pytest.raises(UserError) as caught:
        prepare(rows, chat, max_prompt_tokens=len(prompt) - 1, max_response_tokens=9)
    assert str(caught.value) == (
        f"rows.jsonl: none of the 1 prompts has at most {len(prompt) - 1} tokens; raise "
        "--data.max_prompt_tokens"
    )


def test_responses_that_their_server_cut_lack_the_end_token(chat):
    """Only `data.keep_unfinished` brings them here."""
    whole = rows_of(("Hello", ("Goodbye now", "Good")))
    row = dataclasses.replace(whole[0], complete=(True, False))
    prepared = prepare(dataclasses.replace(whole, rows=(row,)), chat, **LIMITS)
    assert [one.tolist() for one in prepared.responses(0)] == [
        chat.encode_response("Goodbye now"),
        chat.encode_response("Good", complete=False),
    ]
    assert prepared.stats.cut_responses == 0
    # The fingerprint of rows that are all complete is the one of before.
    assert prepared.fingerprint != prepare(whole, chat, **LIMITS).fingerprint
    assert whole[0].complete == (True, True)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_cut_responses_lack_the_end_token(chat, missing):
    """One token too many is the end token itself: then the text is whole and the end is not."""
    tokens = chat.encode_response("Goodbye now")
    limit = len(tokens) - missing
    rows = rows_of(("x", "Goodbye now"), ("x", ("a", "Goodbye now")))
    prepared = prepare(rows, chat, max_prompt_tokens=99, max_response_tokens=limit)
    assert prepared.responses(0)[0].tolist() == tokens[:limit]
    assert chat.end_token not in prepared.responses(0)[0]
    assert prepared.responses(1)[0].tolist() == chat.encode_response("a")
    assert prepared.stats.cut_responses == 2


def test_stats_by_hand(chat):
    words = ["a", "abcdefgh", "The quick"]
    prepared = prepare(rows_of(*((word, word) for word in words)), chat, **LIMITS)
    for lengths, encoded in (
        (prepared.stats.prompt_tokens, [chat.encode_prompt(user(word)) for word in words]),
        (prepared.stats.response_tokens, [chat.encode_response(word) for word in words]),
    ):
        short, middle, long = sorted(map(len, encoded))
        assert lengths.mean == pytest.approx((short + middle + long) / 3)
        assert lengths.p95 == pytest.approx(middle + 0.9 * (long - middle))


def test_a_row_that_the_template_refuses(write_tokenizer, tmp_path, chatml):
    refusal = "{% if 'bad' in messages[0]['content'] %}{{ raise_exception('never') }}{% endif %}"
    chat = Chat.load(write_tokenizer(tmp_path, chat_template=refusal + chatml), "none")
    pairs = [("good", "a"), ("bad", "b"), ("fine", "c")]
    with pytest.raises(UserError, match=r"^row 1: .* refuses the conversation \(never\); .*, or p"):
        prepare(rows_of(*pairs), chat, **LIMITS)
    prepared = prepare(rows_of(*pairs, skip_invalid=True), chat, **LIMITS)
    assert [row.id for row in prepared.rows] == ["row 0", "row 2"]
    assert prepared.stats.skipped == {"the chat template refuses the conversation": 1}
    assert prepared.stats.dropped_long == 0


def test_a_row_without_a_response(chat):
    with pytest.raises(
        UserError, match=r"^row 0: no teacher response; collect one or drop the row"
    ):
        prepare(rows_of(("x", ())), chat, **LIMITS)


# --- fingerprint --------------------------------------------------------------------------------


@pytest.fixture
def same_rows(tmp_path):
    """Five rows as objects, and a JSONL file of them."""
    rows = [
        {
            "content": [{"role": "user", "content": f"question {n} \U0001f600"}],
            "teacher_response": f"answer {n}",
            "score": n,
        }
        for n in range(5)
    ]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=n < 2) for n, row in enumerate(rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return rows, path


def fingerprint(name, chat):
    return prepare(sources.read(name), chat, **LIMITS).fingerprint


def test_fingerprint_is_of_the_rows_not_of_the_file(chat, same_rows, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows, path = same_rows
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    prompts = [
        {
            "id": row["score"],
            "teacher_response": [row["teacher_response"]],
            "prompt": content["content"],
        }
        for row in rows
        for content in row["content"]
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    paths = (path, tmp_path / "b.parquet", tmp_path / "c.jsonl")
    assert len({fingerprint(path, chat) for path in paths}) == 1


def test_fingerprint_of_a_hub_dataset(chat, same_rows, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows, path = same_rows
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    assert fingerprint("org/name", chat) == fingerprint(path, chat)


def test_fingerprint_changes_with_rows_order_and_chat(chat, student):
    pairs = [("a", "b"), ("c", "d")]
    variants = [
        rows_of(*pairs),
        rows_of(*pairs[::-1]),
        rows_of(pairs[0], ("c", "e")),
        rows_of(pairs[0], ("c", ("d", "d"))),
        rows_of(*pairs, ("e", "f")),
    ]
    prints = {prepare(rows, chat, **LIMITS).fingerprint for rows in variants}
    prints.add(prepare(variants[0], Chat.load(student, "alpaca"), **LIMITS).fingerprint)
    assert len(prints) == 6
    with_long = rows_of(*pairs, ("long " * 500, "x"))  # dropped: the same rows are trained on
    assert prepare(with_long, chat, **LIMITS).fingerprint in prints

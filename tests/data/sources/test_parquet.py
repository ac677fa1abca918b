"""Rows from Parquet files, and files that are none."""

import sys

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources

FIX = "; drop the row"


def write(path, *lines):
    path.write_bytes(b"".join(one + b"\n" for one in lines))
    return path


def write_parquet(path, table):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(table) if isinstance(table, dict) else pyarrow.Table.from_pylist(table)
    parquet.write_table(table, path)
    return path


def test_parquet(tmp_path):
    messages = [{"role": "user", "content": "Hi \U0001f600"}]
    path = write_parquet(
        tmp_path / "train.parquet",
        [
            {"content": messages, "teacher_response": "a", "id": "x", "score": 1.0},
            {"content": messages, "teacher_response": None, "id": None, "score": None},
            {"content": messages, "teacher_response": "c", "id": None, "score": None},
        ],
    )
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert str(caught.value) == f"train.parquet:2: no 'teacher_response'{FIX}"
    rows = sources.read(path, skip_invalid=True)
    assert [row.id for row in rows] == ["x", "train.parquet:3"]
    assert rows[0].messages == tuple(messages)


def test_parquet_numbers_where_text_belongs(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"prompt": ["x"], "teacher_response": [b"y"]})
    with pytest.raises(UserError, match=r"'teacher_response' is not a text .* but binary data"):
        sources.read(path)


@pytest.mark.parametrize(
    ("columns", "missing"),
    [
        ({"words": ["x"], "teacher_response": ["y"]}, "'messages', 'content' or 'prompt'"),
        ({"prompt": ["x"], "words": ["y"]}, "'teacher_response'"),
    ],
)
def test_parquet_without_a_column(tmp_path, columns, missing):
    path = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert str(caught.value) == (
        f"a.parquet:1: no {missing} (its columns: {', '.join(columns)}); name those of prompt and "
        "answer with --data.prompt=FIELD --data.response=FIELD (FIELD may be a path such as "
        "response.body.text)"
    )


def test_conversations_and_all_other_columns_are_read(tmp_path):
    spoken = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    path = write_parquet(tmp_path / "a.parquet", [{"conversations": spoken, "hue": "red"}] * 99)
    rows = sources.read(path)
    assert len(rows) == 99
    assert rows[98].messages == ({"role": "user", "content": "x"},)
    assert rows[98].responses == ("y",)
    assert rows[98].id == "a.parquet:99"
    said = "the last assistant turn is the teacher's answer; not used: hue"
    assert rows.notes == (f"{path}: read as ShareGPT: {said}",)


@pytest.mark.parametrize("plain", [True, False, "dictionary"])
def test_a_small_file_that_fills_the_memory_is_refused(tmp_path, monkeypatch, plain):
    """One text of a dictionary in each of many rows, and a page that compresses very well."""
    from gad_jax.data.sources import expansion

    monkeypatch.setattr(expansion, "FREE_BYTES", 2**22)
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    prompts = pyarrow.array(["a" * 2**16] * 2**10)
    prompts = prompts.dictionary_encode() if plain == "dictionary" else prompts
    table = pyarrow.table({"prompt": prompts, "teacher_response": ["b"] * 2**10})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, use_dictionary=plain is False, compression="zstd")
    with pytest.raises(UserError, match=r"a\.parquet: holds more than 200 times its \d+ bytes"):
        sources.read(path)


def test_parquet_that_is_not_utf8(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    offsets, data = pyarrow.array([0, 1, 2, 3], pyarrow.int32()).buffers()[1], b"a\xffc"
    bad = pyarrow.StringArray.from_buffers(3, offsets, pyarrow.py_buffer(data))
    path = write_parquet(tmp_path / "a.parquet", {"prompt": bad, "teacher_response": ["y"] * 3})
    with pytest.raises(UserError, match=r"a\.parquet:2: not UTF-8; drop the row"):
        sources.read(path)
    assert sources.read(path, skip_invalid=True).skipped == {"not UTF-8": 1}


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1" + b"x" * 40])
def test_parquet_that_is_none(tmp_path, content):
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a.parquet: not a whole Parquet file \("):
        sources.read(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs the package pyarrow; install it or give JSONL"):
        sources.read(path)

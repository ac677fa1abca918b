"""Rows from Parquet files, and files that are none."""

import sys

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources

FIX = "; drop the row or pass --data.skip_invalid"


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
        ({"prompt": ["x"], "answer": ["y"]}, "'teacher_response'"),
    ],
)
def test_parquet_without_a_column(tmp_path, columns, missing):
    path = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert str(caught.value) == (
        f"a.parquet: no column {missing} (its columns: {', '.join(columns)}); rename the one that "
        "holds it"
    )


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

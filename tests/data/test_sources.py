import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.sources import jsonl

GOOD = {"prompt": "Name a fruit.", "teacher_response": "An apple."}
FIX = "; drop the row or pass --data.skip_invalid"


def line(value):
    return json.dumps(value).encode()


def write(path, *lines):
    path.write_bytes(b"".join(one + b"\n" for one in lines))
    return path


# --- rows ---------------------------------------------------------------------------------------


def test_the_three_forms_of_a_prompt(tmp_path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "name": None},
    ]
    path = write(
        tmp_path / "train.jsonl",
        line(GOOD | {"id": "first", "score": 3}),
        line({"messages": messages, "teacher_response": ["a", "b"], "id": 7}),
        line({"content": messages[1:], "teacher_response": "c", "category": "chat", "id": None}),
        line({"messages": None, "content": messages, "prompt": "no", "teacher_response": "d"}),
    )
    rows = sources.read(path)
    assert [row.id for row in rows] == ["first", "7", "train.jsonl:3", "train.jsonl:4"]
    assert [row.responses for row in rows] == [("An apple.",), ("a", "b"), ("c",), ("d",)]
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    assert rows[0].messages == ({"role": "user", "content": "Name a fruit."},)
    assert rows[1].messages == rows[3].messages == (system, user)
    assert rows[2].messages == (user,)
    assert len(rows) == 4
    assert rows.skipped == {}


def test_prompt_sets_as_they_are_downloaded(tmp_path):
    """Dolly, MiniLLM's form of it, SelfInst, Vicuna's two forms; in JSONL and in Parquet."""
    import pyarrow
    import pyarrow.parquet

    forms = {
        "dolly": [
            {"instruction": "Why?", "context": "", "response": "So.", "category": "open_qa"},
            {"instruction": "Who?", "context": "Ann came.", "response": "Ann", "category": "qa"},
        ],
        "minillm": [
            {"prompt": "Below … Why?", "instruction": "Why?", "input": "", "output": "So."},
            {"prompt": "Below … Who?", "instruction": "Who?", "input": "Ann came.", "output": "A"},
        ],
        "selfinst": [
            {"id": "user_oriented_task_0", "instruction": "Why?", "instances": [{"input": ""}]},
            {"id": "user_oriented_task_1", "instruction": "Who?", "instances": [
                {"input": "Ann came.", "output": "Ann"}, {"input": "Bob came.", "output": "Bob"}]},
        ],
        "vicuna": [
            {"question_id": 1, "text": "Why?", "category": "generic"},
            {"question_id": 2, "text": "Who?\n\nAnn came.", "category": "generic"},
        ],
        "turns": [
            {"question_id": 1, "category": "x", "turns": ["Why?", "And then?"]},
            {"question_id": 2, "category": "x", "turns": ["Who?\n\nAnn came."]},
        ],
    }  # fmt: skip
    for name, records in forms.items():
        table = pyarrow.Table.from_pylist(records)
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
        path = write(tmp_path / f"{name}.jsonl", *map(line, records))
        for file in (path, tmp_path / f"{name}.parquet"):
            rows = sources.read(file, need_response=False)
            texts = [row.messages[-1]["content"] for row in rows]
            assert texts == ["Why?", "Who?\n\nAnn came."], name
            assert all(not row.responses for row in rows)
    assert [row.id for row in sources.read(path, need_response=False)] == ["1", "2"]


@pytest.mark.parametrize(
    "text",
    [
        "line\u2028separator, next\u0085line",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 \u202eabc\u202c \ud55c\uad6d\uc5b4",
        "<|im_end|>",
        "  padded\n",
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_text_is_kept_as_it_is(tmp_path, text, ascii_only):
    row = {"prompt": text, "teacher_response": text}
    path = write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=ascii_only).encode())
    (row,) = sources.read(path)
    assert row.messages[0]["content"] == row.responses[0] == text


def test_bom_crlf_blank_lines_and_a_missing_last_newline(tmp_path):
    path = tmp_path / "train.jsonl"
    content = b"\xef\xbb\xbf" + line(GOOD) + b"\r\n\r\n  \n" + line(GOOD)
    path.write_bytes(content)
    assert [row.id for row in sources.read(path)] == ["train.jsonl:1", "train.jsonl:4"]


# --- files --------------------------------------------------------------------------------------


def test_gzip(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(line(GOOD) + b"\n" + line(GOOD)))
    assert [row.id for row in sources.read(path)] == ["train.jsonl.gz:1", "train.jsonl.gz:2"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a whole gzip file"):
        sources.read(path)
    path.write_bytes(line(GOOD))
    with pytest.raises(UserError, match="not a whole gzip file"):
        sources.read(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_files(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl: no rows; give a file with at least one valid"):
        sources.read(path)


@pytest.mark.parametrize("name", ["absent.jsonl", "a/absent.parquet", "", "bundled:x", "nul\x00"])
def test_names_of_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(UserError, match=r"no such file; give a \.jsonl, .* or bundled or bun"):
            sources.read(name)
    else:
        with pytest.raises(UserError):
            sources.read(name)


def test_unknown_kinds_of_file(tmp_path):
    path = write(tmp_path / "train.json", line([GOOD]))
    with pytest.raises(UserError, match=r"train.json: unknown kind of file; give \.jsonl, \.jso"):
        sources.read(path)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", line(GOOD))

    def fail(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(jsonl, "open", fail, raising=False)
    with pytest.raises(UserError, match=r"a.jsonl: cannot be read \(Permission denied\); check"):
        sources.read(path)


def test_directories(tmp_path):
    write(tmp_path / "b.jsonl", line(GOOD))
    write(tmp_path / "a.jsonl", line(GOOD), line(GOOD))
    write(tmp_path / "README.md", b"no data")
    rows = sources.read(tmp_path)
    assert [row.id for row in rows] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]


def test_directories_with_splits(tmp_path):
    for name in ("train-00001.jsonl", "train-00000.jsonl", "test-00000.jsonl", "trainer.jsonl"):
        write(tmp_path / name, line(GOOD))
    assert [row.id for row in sources.read(tmp_path)] == [
        "train-00000.jsonl:1",
        "train-00001.jsonl:1",
    ]
    assert [row.id for row in sources.read(tmp_path, split="test")] == ["test-00000.jsonl:1"]
    with pytest.raises(UserError, match="no file name begins with 'validation'"):
        sources.read(tmp_path, split="validation")


def test_a_directory_without_data(tmp_path):
    with pytest.raises(UserError, match=r"no \.jsonl, \.jsonl\.gz, \.parquet file in this direc"):
        sources.read(tmp_path)


def test_bundled(monkeypatch, tmp_path):
    write(tmp_path / "train.jsonl", line(GOOD))
    write(tmp_path / "heldout.jsonl", line(GOOD), line(GOOD))
    monkeypatch.setattr(sources, "_BUNDLED_DIRECTORY", tmp_path)
    assert len(sources.read("bundled")) == 1
    assert len(sources.read("bundled:heldout")) == 2


# --- Parquet ------------------------------------------------------------------------------------


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


# --- hub ----------------------------------------------------------------------------------------


def test_hub_dataset(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return [GOOD, GOOD | {"teacher_response": ""}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = sources.read("org/name", split="test", skip_invalid=True)
    assert asked == [("org/name", "test")]
    assert [row.id for row in rows] == ["org/name:1"]
    with pytest.raises(UserError, match=f"^org/name:2: 'teacher_response' is empty{FIX}"):
        sources.read("org/name")


def test_hub_dataset_that_cannot_be_loaded(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("Couldn't reach the Hub\nlong traceback")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError) as caught:
        sources.read("org/name")
    assert str(caught.value) == (
        "org/name: neither a file nor a hub dataset that can be loaded now (Couldn't reach the "
        "Hub); give a downloaded file"
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="hub datasets need the package datasets; install it"):
        sources.read("org/name")


def test_a_name_can_end_in_its_split(tmp_path):
    for split in ("train", "test"):
        row = {"prompt": f"from {split}", "teacher_response": "yes"}
        (tmp_path / f"{split}-0.jsonl").write_text(json.dumps(row) + "\n")
    assert sources.read(tmp_path)[0].messages[-1]["content"] == "from train"
    assert sources.read(f"{tmp_path}:test")[0].messages[-1]["content"] == "from test"

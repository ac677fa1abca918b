import json

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources

GOOD = {"prompt": "Name a fruit.", "teacher_response": "An apple."}
FIX = "; drop the row"


def line(value):
    return json.dumps(value).encode()


def write(path, *lines):
    path.write_bytes(b"".join(one + b"\n" for one in lines))
    return path


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
    path = write(tmp_path / "train.yaml", line([GOOD]))
    with pytest.raises(UserError, match=r"train.yaml: unknown kind of file; give \.jsonl, \.ndj"):
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
    with pytest.raises(
        UserError, match=r"no \.jsonl, \.ndjson, .*\.parquet, \.arrow file in this direc"
    ):
        sources.read(tmp_path)


def test_bundled(monkeypatch, tmp_path):
    write(tmp_path / "train.jsonl", line(GOOD))
    write(tmp_path / "heldout.jsonl", line(GOOD), line(GOOD))
    monkeypatch.setattr(sources, "_BUNDLED_DIRECTORY", tmp_path)
    assert len(sources.read("bundled")) == 1
    assert len(sources.read("bundled:heldout")) == 2


def test_a_name_can_end_in_its_split(tmp_path):
    for split in ("train", "test"):
        row = {"prompt": f"from {split}", "teacher_response": "yes"}
        (tmp_path / f"{split}-0.jsonl").write_text(json.dumps(row) + "\n")
    assert sources.read(tmp_path)[0].messages[-1]["content"] == "from train"
    assert sources.read(f"{tmp_path}:test")[0].messages[-1]["content"] == "from test"


def test_files_of_one_name_are_told_apart(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        write(tmp_path / place / "rows.jsonl", line(GOOD), line(GOOD | {"id": "own"}))
    write(tmp_path / "b" / "other.jsonl", line(GOOD))
    found = sources.read(f"{tmp_path}/*/*.jsonl")
    first, second = (f"{tmp_path / place / 'rows.jsonl'}:1" for place in ("a", "b"))
    assert [row.id for row in found] == [first, "own", "other.jsonl:1", second, "own"]


def test_the_advice_names_the_flag_that_a_command_has(tmp_path):
    path = write(tmp_path / "train.jsonl", line(GOOD), b"{")
    with pytest.raises(UserError, match=r"; drop the row$"):
        sources.read(path, skip_flag="")
    with pytest.raises(UserError, match=r"; drop the row or pass --skip_invalid$"):
        sources.read(path, skip_flag="--skip_invalid")


@pytest.mark.parametrize("nothing", ["", " ", [], None])
def test_prompts_need_no_answers(tmp_path, nothing):
    path = write(tmp_path / "asked.jsonl", line(GOOD), line(GOOD | {"teacher_response": nothing}))
    rows = sources.read(path, need_response=False)
    assert [row.responses for row in rows] == [("An apple.",), ()]
    with pytest.raises(UserError, match=r"asked.jsonl:2: .*teacher_response"):
        sources.read(path)


def test_answers_that_are_named_and_nowhere_are_missed(tmp_path):
    path = write(tmp_path / "asked.jsonl", line({"prompt": "Hi", "answer": "Yes."}))
    asked = {"need_response": False, "prompt_field": "prompt"}
    notes = sources.read(path, response_field="answr", **asked).notes
    assert notes[-1].startswith(f"warning: {path}: no row has an answer in 'answr', which --data.r")
    assert not any("warning" in note for note in sources.read(path, **asked).notes)
    found = sources.read(path, response_field="answer", **asked)
    assert found[0].responses == ("Yes.",)
    assert not any("warning" in note for note in found.notes)

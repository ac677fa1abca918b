"""JSON files that are one value."""

import json
from pathlib import Path
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.sources import documents, jsonl

ROWS = [{"prompt": f"q{n}", "teacher_response": f"a{n} \u2028 \N{GRINNING FACE}"} for n in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
FRAME = {name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}
SPLIT = {"columns": [*ROWS[0]], "index": [0], "data": [[*row.values()] for row in ROWS]}
VIEWER = {"features": [], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(ROWS)]}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize("indent", [None, 2])
def test_arrays(tmp_path: Path, name: str, indent: int | None) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=False), encoding="utf-8-sig")
    rows = sources.read(path)
    assert [row.responses[0] for row in rows] == COLUMNS["teacher_response"]
    assert [row.id for row in rows] == [f"{name}:{n}" for n in range(1, 6)]


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        "\n\n" + LINES,
        "".join(json.dumps(row, indent=2) + "\n" for row in ROWS),
        json.dumps({"data": ROWS}),
        json.dumps({"version": 1, "about": {"by": ["x"]}, "data": ROWS, "n": 5}, indent=1),
        json.dumps(COLUMNS),
        json.dumps(FRAME, indent=1),
        json.dumps(SPLIT),
        json.dumps(VIEWER),
        json.dumps({"schema": {"fields": []}, "data": ROWS}),
    ],
)
def test_other_forms(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    rows = sources.read(path)
    assert [row.messages[0]["content"] for row in rows] == COLUMNS["prompt"]
    assert [row.responses[0] for row in rows] == COLUMNS["teacher_response"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "row",
    [
        ROWS[0],
        {"messages": [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a"}]},
        {"data": ["q0", "a"]},
        {"turns": ["q0"], "teacher_response": ["a"]},
    ],
)
def test_one_row(tmp_path: Path, row: dict[str, Any], indent: int | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(row, indent=indent))
    (found,) = sources.read(path)
    assert found.messages[-1]["content"] == "q0"


@pytest.mark.parametrize("text", ["[]", "[ ]", "", " \n"])
def test_no_rows(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match="no rows; give a file with at least one valid row"):
        sources.read(path)


ROW = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"[{ROW}, {ROW}", "a.json:3: not JSON (the end of the file in place of ',' or ']')"),
        (f"[{ROW}, {ROW[:20]}", "a.json:2: not JSON (Unterminated string starting at)"),
        (f"[{ROW}, {ROW},]", "a.json:3: not JSON (Expecting value)"),
        (f"[{ROW} {ROW}]", "a.json:2: not JSON ('{' in place of ',' or ']')"),
        (f"[{ROW}] x", "a.json:2: not JSON (more text behind the end of the array)"),
        (f'[{ROW}, {{"a": {"[" * 100_000}', "a.json:2: not JSON (nested too deeply)"),
        (f'[{ROW}, {{"a": {"1" * 5000}}}]', "a.json:2: not JSON (a number has too many digits)"),
        (f'[{ROW}, {{"prompt" "x"}}]', "a.json:2: not JSON (Expecting ':' delimiter)"),
        ('{"data": [', "a.json:1: not JSON ("),
        ('{\n"data": 1', "a.json:1: not JSON (the end of the file in place of ',' or '}')"),
        ("{\n1: 2}", "a.json:1: not JSON (a name in an object is no text)"),
    ],
)
def test_texts_that_are_no_json(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        sources.read(path, skip_invalid=True)
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("; correct the file, or fetch it again")


def test_rows_that_are_wrong_are_named_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'[{ROW}, 3, {{"prompt": NaN, "teacher_response": "x"}}, [1], {ROW}]')
    with pytest.raises(UserError, match=r"a\.json:2: not a JSON object but a number; drop the row"):
        sources.read(path)
    rows = sources.read(path, skip_invalid=True)
    assert [row.id for row in rows] == ["a.json:1", "a.json:5"]
    assert rows.skipped == {"not a JSON object": 2, "not JSON": 1}


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"prompt": "\xff"}]')
    with pytest.raises(UserError, match=r"a\.json:1: not JSON \(not UTF-8\)"):
        sources.read(path)


def test_rows_over_many_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, characters and numbers are cut anywhere by the end of a window."""
    for size in (1, 2, 3, 7, 50):
        monkeypatch.setattr(documents, "_CHUNK_BYTES", size)
        path = tmp_path / "a.json"
        rows = [row | {"id": 1234567 + n} for n, row in enumerate(ROWS)]
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
        assert [row.id for row in sources.read(path)] == [str(1234567 + n) for n in range(5)]


def test_endless_values_that_are_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_MAX_OTHERS", 10)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([1] * 11))
    with pytest.raises(UserError, match=r"not JSON \(11 values in a row that are no objects"):
        sources.read(path, skip_invalid=True)


def test_a_row_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents.jsonl, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "a.json"
    path.write_text(f'[{ROW}, "{"x" * 2**25}"]')
    with pytest.raises(UserError, match=r"a\.json:2: not JSON \(a row is longer than 16 MiB\)"):
        sources.read(path)


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n" + LINES + "x\n")
    with pytest.raises(
        UserError, match=r"^a\.json:7: not JSON \(Expecting value, column 1\); drop"
    ):
        sources.read(path)
    assert next(where for where, _ in jsonl.records(path)) == "a.json:2"

"""CSV and TSV."""

import csv
import json
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources

TEXTS = ["plain", 'with "quotes", commas; and\ttabs', "two\nlines", "\N{GRINNING FACE}", "'"]


def write(path: Path, names: list[str], rows: list[list[str]], **how: str) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **how).writerows([names, *rows])
    return path


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")]
)
def test_any_text_survives(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = [[text, f"answer {text}"] for text in TEXTS]
    path = write(tmp_path / name, ["prompt", "response"], rows, delimiter=delimiter)
    found = sources.read(path)
    assert [row.messages[0]["content"] for row in found] == TEXTS
    assert [row.responses[0] for row in found] == [f"answer {text}" for text in TEXTS]
    assert [row.id for row in found] == [f"{name}:{n}" for n in range(2, 7)]


def test_a_file_of_excel(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('Frage;Question;Answer\r\n1;"a;b";c\r\n\r\n2;d;"e"\r\n'.encode("utf-8-sig"))
    assert [(row.messages[0]["content"], row.responses) for row in sources.read(path)] == [
        ("a;b", ("c",)),
        ("d", ("e",)),
    ]


def test_messages_in_cells(tmp_path: Path) -> None:
    spoken = [{"from": "human", "value": 'x "y"'}, {"from": "gpt", "value": "z\n"}]
    rows = [[json.dumps(spoken), ""], [repr(spoken), ""]]
    found = sources.read(write(tmp_path / "a.csv", ["conversations", "system"], rows))
    assert [row.messages[0]["content"] for row in found] == ['x "y"'] * 2
    assert [row.responses for row in found] == [("z\n",)] * 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x", "not as many cells as names in the first row: 1, not 2"),
        ("x,y,z", "not as many cells as names in the first row: 3, not 2"),
        ('"x"y,z', "not CSV (',' expected after '\"')"),
        ("x,", "'response' is empty"),
        (",y", "'prompt' is empty"),
        ("caf\udce9,y", "not UTF-8"),
    ],
)
def test_rows_that_are_wrong(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"prompt,response\na,b\n{line}\nc,d\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert str(caught.value) == f"a.csv:3: {said}; drop the row"
    rows = sources.read(path, skip_invalid=True)
    assert [row.id for row in rows] == ["a.csv:2", "a.csv:4"]


def test_an_open_quote_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,response\na,b\nc,"d\ne,f\n')
    with pytest.raises(UserError, match=r"a\.csv:3: not CSV \(unexpected end of data\); drop"):
        sources.read(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"),
        ("prompt,response\n", "no rows"),
        ("a,a\nx,y\n", "two columns have the name 'a'; rename one of them"),
        ('"a"b,c\nx,y\n', "the line of names is no CSV"),
        ("What is it?,A fruit.\nx,y\n", "(its columns: What is it?, A fruit.); name those of"),
    ],
)
def test_names_that_are_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert said in str(caught.value)


def test_json_with_the_wrong_ending(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('{"prompt": "x", "response": "y"}\n')
    assert len(sources.read(path)) == 1


def test_line_ends_of_an_old_macintosh_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt,response\ra,b\rc,d\r")
    with pytest.raises(UserError, match=r"is no CSV .* old Macintosh"):
        sources.read(tmp_path / "a.csv")

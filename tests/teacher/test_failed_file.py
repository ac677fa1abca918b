"""The file of questions without a response: what stays in it from run to run."""

import json
from pathlib import Path

from gad_jax.teacher.failed_file import Failures, refused
from gad_jax.teacher.questions import Question


def question(key: str) -> Question:
    return Question(key, 0, f"row {key}", (), ())


def rows(path: Path) -> dict[str, bool]:
    return {row["key"]: row["final"] for row in map(json.loads, path.read_text().split("\n")[:-1])}


def test_refusals_stay_until_they_are_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "a.failed.jsonl"
    first = Failures(path)
    first.add(question("a"), "refused: too long", final=True)
    first.add(question("b"), "unanswered: status 500")
    first.add(question("c"), "refused: filtered", final=True)
    assert rows(path) == {"a": True, "b": False, "c": True}
    assert refused(path) == {("a", 0), ("c", 0)}
    Failures(path, [question("c")])
    assert rows(path) == {"a": True}
    Failures(path, [question("a")])
    assert not path.exists()
    assert refused(path) == set()


def test_refusals_that_were_about_all_requests_are_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "a.failed.jsonl"
    failures = Failures(path)
    for key in "abc":
        failures.add(question(key), "refused: status 400", final=True)
    failures.reopen([question("b"), question("c")])
    assert rows(path) == {"a": True, "b": False, "c": False}
    assert refused(path) == {("a", 0)}


def test_a_damaged_file_costs_no_more_than_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.failed.jsonl"
    Failures(path).add(question("a"), "refused: x", final=True)
    old = b'{"key": "b", "sample": 0, "reason": "refused: of a version without final"}\n'
    path.write_bytes(b'[]\nno\n{"key": []}\n' + old + path.read_bytes() + b'{"torn')
    assert refused(path) == {("a", 0)}

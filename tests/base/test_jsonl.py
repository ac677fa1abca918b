"""Files that only grow: torn lines, full disks."""

import math
import os
from pathlib import Path

import pytest

from gad_jax.base.jsonl import (
    Appender,
    amend_last_row,
    cut_torn_line,
    encode,
    json_numbers,
    read_lines,
    read_rows,
)


def test_rows_are_added_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": 'Naïve – "quoted"\u2028line\n\N{GRINNING FACE}'}, {"number": 1.5}]
    for row in rows:
        with Appender(path) as file:
            file.append([row])
    assert read_rows(path) == rows
    assert len(read_lines(path)) == path.read_bytes().count(b"\n") == 2
    file.close()  # a second time does nothing


@pytest.mark.parametrize("sync", [True, False])
def test_a_line_torn_at_any_byte_is_cut_off_before_the_next(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "rows.jsonl"
    first, second, third = (encode({"n": n}) for n in range(3))
    for size in range(len(second)):
        path.write_bytes(first + second[:size])
        assert read_rows(path) == [{"n": 0}]
        with Appender(path, sync=sync) as file:
            file.append([{"n": 2}])
        assert path.read_bytes() == first + third


def test_a_whole_line_gets_its_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = encode({"n": 0})
    path.write_bytes(line[:-1] + b"torn")
    Appender(path, whole_bytes=len(line) - 1).close()
    assert path.read_bytes() == line


def test_a_full_disk_leaves_the_earlier_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    with Appender(path) as file:
        file.append([{"n": 0}])
        with monkeypatch.context() as full:
            full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
            with pytest.raises(OSError, match="No space left"):
                file.append([{"n": 1}])
        assert read_rows(path) == [{"n": 0}]
        file.append([{"n": 2}])
    assert read_rows(path) == [{"n": 0}, {"n": 2}]


def test_the_caller_may_cut_the_file_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Appender(path, sync=False) as file:
        file.append({"step": step} for step in range(1, 5))
        os.truncate(path, 2 * len(encode({"step": 1})))
        file.append([{"step": 3}])
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]


def test_cutting_leaves_whole_lines_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for content, kept in ((b"", b""), (b"{}\n", b"{}\n"), (b"{}\n{", b"{}\n"), (b"{", b"")):
        path.write_bytes(content)
        cut_torn_line(path)
        assert path.read_bytes() == kept


def test_numbers_that_are_not_finite_become_null() -> None:
    assert json_numbers({"a": 1.0, "b": math.nan, "c": -math.inf}) == {
        "a": 1.0,
        "b": None,
        "c": None,
    }


def test_amending_changes_only_the_last_row_of_that_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "a": 1.0}\n')
    amend_last_row(path, 1, {"b": 2.0})
    assert read_rows(path) == [{"step": 1}, {"step": 2, "a": 1.0}]
    amend_last_row(path, 2, {"b": 2.0, "c": math.nan})
    assert read_rows(path) == [{"step": 1}, {"step": 2, "a": 1.0, "b": 2.0, "c": None}]

"""metrics.jsonl as a crash or a disk left it, and what of it a run resumes with."""

import json
from pathlib import Path

import pytest

from gad_jax.training import metric_rows


def line(step: int) -> bytes:
    return json.dumps({"step": step, "stage": "gad", "generator/loss": 0.5}).encode() + b"\n"


def steps(path: Path) -> list[int]:
    return [json.loads(text)["step"] for text in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("content", "step", "kept"),
    [
        (b"", 0, 0),
        (b"".join(map(line, range(1, 3))), 2, 2),
        (b"".join(map(line, range(1, 6))), 2, 2),  # those steps run again
        (line(1) + line(2)[:-1], 1, 1),  # a torn line
        (line(1) + b"[]\n" + line(2) + line(3), 1, 1),  # damage after the step that counts
        (b"".join(map(line, range(1, 4))), 0, 0),
    ],
)
def test_rows_are_cut_at_the_step_without_a_word(
    tmp_path: Path, content: bytes, step: int, kept: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    rows, notice = metric_rows.resume(path, step)
    assert (len(rows), notice) == (kept, "")
    assert path.read_bytes() == b"".join(map(line, range(1, kept + 1)))
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


DAMAGES = {
    "no JSON": line(3).replace(b":", b"\x00", 1),
    "not UTF-8": line(3).replace(b"gad", b"g\xffd"),
    "a step far away": line(3).replace(b": 3", b": 33"),
    "a step that was": line(3).replace(b": 3", b": 1"),
    "a step that is text": line(3).replace(b"3", b'"3"'),
    "another object": b'{"stage": "gad"}\n',
    "nested": b"[" * 100_000 + b"\n",
    "nothing": b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_rows_around_a_damaged_one_stay(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    content = line(1) + line(2) + DAMAGES[damage] + b"".join(map(line, range(4, 8)))
    path.write_bytes(content)
    assert [row["step"] for row in metric_rows.read(path)] == [1, 2, 4, 5, 6, 7]
    assert path.read_bytes() == content
    rows, notice = metric_rows.resume(path, 6)
    assert [row["step"] for row in rows] == steps(path) == [1, 2, 4, 5, 6]
    copies = [file for file in tmp_path.iterdir() if ".corrupt-" in file.name]
    if damage == "nothing":
        assert (notice, copies) == ("metrics.jsonl has no rows of step 3", [])
    else:
        assert "was damaged: the rows of step 3 are lost, the others stay" in notice
        assert copies[0].name in notice
        assert copies[0].read_bytes() == content
    assert metric_rows.resume(path, 6).notice == "metrics.jsonl has no rows of step 3"


def test_a_missing_file_and_a_lost_line_feed_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert "no rows of steps 1 to 4" in metric_rows.resume(path, 4).notice
    path.write_bytes(line(1) + line(2)[:-1] + b"\x0b" + line(3) + line(4))
    assert "the rows of steps 2 to 3 are lost" in metric_rows.resume(path, 4).notice
    assert steps(path) == [1, 4]

"""The file of responses: what a crash leaves is mended, what is not ours is left alone."""

import asyncio
import json
from pathlib import Path

import pytest

from gad_jax.base.errors import StorageError, UserError
from gad_jax.data.sources.rows import Row
from gad_jax.teacher import store as storing
from gad_jax.teacher.budget import Use
from gad_jax.teacher.questions import Teacher, from_rows
from gad_jax.teacher.store import Store
from gad_jax.teacher.wire import Completion, Reply, Usage

TEACHER = Teacher("m", "", {"temperature": 1.0})
TEXT = 'Naïve – "quoted"\u2028line\n\N{GRINNING FACE}'


def make_lines(count: int, usage: Usage | None = None) -> list[storing.Line]:
    rows = [Row(({"role": "user", "content": f"p{n}"},), (), str(n)) for n in range(count)]
    reply = Reply("r", "m-1", (Completion(TEXT, "stop"),), usage)
    return [storing.make_line(question, TEACHER, reply) for question in from_rows(rows, TEACHER, 1)]


def add(path: Path, *lines: storing.Line) -> None:
    async def run() -> None:
        store = Store.open(path)
        await asyncio.gather(*map(store.add, lines))
        store.close()

    asyncio.run(run())


def test_a_file_torn_at_any_byte_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    one, two = make_lines(2, Usage(3, 4))
    add(path, one)
    first = len(path.read_bytes())
    add(path, two)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = (size >= first - 1) + (size >= len(whole) - 1)  # the line feed alone may be missing
        assert len(storing.scan(path).have) == kept
        assert path.read_bytes() == whole[:size]
        Store.open(path).close()
        assert path.read_bytes() == whole[: (0, first, len(whole))[kept]]
    assert storing.scan(path).used == Use(2, 6, 8)
    add(path, *[line for line in (one, two) if (line["key"], 0) not in storing.scan(path).have])
    assert path.read_bytes() == whole


def test_what_a_power_failure_leaves_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    add(path, *make_lines(1))
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 5000)
    Store.open(path).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [b'{"prompt": "x"}\n', b"my notes", b"[1]\n", b'{"key": 1, "sample": 0}\n', b"\xff\n", b"\n"],
)
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(UserError, match="mine:1: not a line that collect wrote"):
        Store.open(path)
    assert path.read_bytes() == content


def test_a_line_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    add(path, *make_lines(3))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[2])
    with pytest.raises(UserError, match=r"out\.jsonl:2: not a line"):
        Store.open(path)


def test_many_at_once_are_all_there_once(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    lines = make_lines(200)
    add(path, *lines)
    found = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert sorted(line["key"] for line in found) == sorted(line["key"] for line in lines)
    assert {line["teacher_response"] for line in found} == {TEXT}


def test_without_usage_the_most_is_counted(tmp_path: Path) -> None:
    (line,) = make_lines(1)
    requests, prompt, completion = storing.used(line)
    assert (requests, completion) == (1, len(TEXT.encode()) + 1)
    assert prompt >= len("p0")


def test_no_room_is_noticed_before_paying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path / "out.jsonl")
    store.check_room(1)
    monkeypatch.setattr(storing.shutil, "disk_usage", lambda path: type("U", (), {"free": 3 << 20}))
    store.check_room(3)
    with pytest.raises(StorageError, match="3 MiB left"):
        store.check_room(4)
    store.close()

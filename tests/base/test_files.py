"""Locks in real processes; atomic writes and what a crash leaves."""

import os
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.base.files import (
    clear_partials,
    from_home,
    hold,
    irregular,
    lock_file,
    lock_run,
    need_regular,
    write_atomic,
)
from tests.base.processes import finish, start

HOLD = """
import sys, time
from gad_jax.base.errors import UserError
from gad_jax.base.exits import run_guarded
from gad_jax.base.files import lock_run
def main():
    with lock_run(sys.argv[1]):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
    return 0
sys.exit(run_guarded(main))
"""


def test_the_home_directory_is_found_where_a_path_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert from_home("~/runs/a") == "/home/me/runs/a"
    assert from_home("~/a.jsonl=0.7, ~/b.jsonl=0.3") == "/home/me/a.jsonl=0.7, /home/me/b.jsonl=0.3"
    assert from_home(("own=~/runs/a@best", "b")) == ("own=/home/me/runs/a@best", "b")
    assert from_home("~") == "/home/me"
    for kept in ("", "a/~/b", "~~", "a~", "~other/a", "org/name~/", "a b ~/c"):
        assert from_home(kept) == kept


def test_a_second_run_on_a_directory_is_refused_and_a_dead_one_replaced(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "one"
    first = start(HOLD, str(run_dir), "600")
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    code, out, err = finish(start(HOLD, str(run_dir), "0"))
    assert (code, out) == (2, "")
    assert f"is in use by process {first.pid} on " in err
    assert err.count("\n") == 1
    first.kill()
    finish(first)
    assert (run_dir / ".lock.json").exists()
    assert finish(start(HOLD, str(run_dir), "0"))[:2] == (0, "held\n")
    with lock_run(run_dir):
        pass


def test_a_run_directory_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"), lock_run(tmp_path / "file"):
        pass


def test_write_atomic_replaces_or_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    write_atomic(path, "old")
    write_atomic(path, "new ü".encode())
    assert path.read_text() == "new ü"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "lost")
    assert path.read_text() == "new ü"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_write_left_is_cleared(tmp_path: Path) -> None:
    deep = tmp_path / "checkpoints" / "2"
    deep.mkdir(parents=True)
    (deep / ".record.json.7.partial").write_text("{")
    (deep / "record.json").write_text("{}")
    (tmp_path / ".student.partial").mkdir()  # a directory is the export's to clear
    clear_partials(tmp_path)
    assert [path.name for path in deep.iterdir()] == ["record.json"]
    assert (tmp_path / ".student.partial").is_dir()


def test_links_of_a_locked_file_are_locked(tmp_path: Path) -> None:
    """The flock of another descriptor conflicts in one process as it does in two."""
    real, other = tmp_path / "a.jsonl", tmp_path / "elsewhere"
    other.mkdir()
    real.write_text("")
    (tmp_path / "soft.jsonl").symlink_to(real)
    (other / "soft.jsonl").symlink_to("../soft.jsonl")
    os.link(real, other / "hard.jsonl")
    (tmp_path / "folder").symlink_to(other)
    names = ("a.jsonl", "soft.jsonl", "elsewhere/soft.jsonl", "folder/hard.jsonl")
    for first in names:
        with lock_file(tmp_path / first, "--out"):
            for second in names:
                with (
                    pytest.raises(UserError, match=r"is in use by .*; stop that run, or choose"),
                    lock_file(tmp_path / second, "--out"),
                ):
                    pass
            with lock_file(tmp_path / "b.jsonl", "--out"):
                pass
    assert real.read_text() == ""
    with lock_run(other), pytest.raises(UserError, match="in use"), lock_run(tmp_path / "folder"):
        pass


def test_a_file_that_was_made_later_is_held_too(tmp_path: Path) -> None:
    path, link = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    with lock_file(path, "--out"):
        assert hold(path)  # nothing is there
        path.write_text("")
        assert hold(path)
        assert hold(path)
        os.link(path, link)
        with pytest.raises(UserError, match="under another name"), lock_file(link, "--out"):
            pass
    with lock_file(link, "--out"):
        assert hold(path)  # nobody has it locked by this name
    assert hold(tmp_path / "never locked")


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    for name, kind in (("pipe", "a pipe"), (".", "a directory"), ("/dev/null", "a device")):
        assert irregular(tmp_path / name) == kind
        with pytest.raises(UserError, match=f"is {kind} and no file"):
            need_regular(tmp_path / name)
        with pytest.raises(UserError, match=f"is {kind} and no"), lock_file(tmp_path / name, "-o"):
            pass
    for name in ("file", "missing", "a\0b"):
        assert irregular(tmp_path / name) == ""
        need_regular(tmp_path / name)

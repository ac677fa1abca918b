"""Locks in real processes; atomic writes and what a crash leaves."""

import os
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.base.files import clear_partials, lock_run, write_atomic
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


def test_a_second_run_on_a_directory_is_refused_and_a_dead_one_replaced(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "one"
    first = start(HOLD, str(run_dir), "20")
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

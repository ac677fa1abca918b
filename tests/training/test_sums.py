"""The checksums of a checkpoint's files: each changed, missing or swapped file is named."""

import os
from pathlib import Path

import pytest

from gad_jax.training import sums
from gad_jax.training.digest import DamagedRecord


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name, content in {"a": b"1" * 8192, "d/b": b"2" * 8192, "empty": b"", "d/c": b"3"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "record.json").write_text("{}")
    sums.write(tmp_path)
    return tmp_path


def test_what_is_whole_passes(checkpoint: Path) -> None:
    sums.check(checkpoint)
    (checkpoint / "meta" / "record.json").write_text('{"score": 1}')  # it seals itself
    sums.check(checkpoint)
    (checkpoint / sums.NAME).unlink()
    sums.check(checkpoint)


def test_every_change_is_named(checkpoint: Path) -> None:
    whole = (checkpoint / "a").read_bytes()
    zeroed = bytes(4096) + whole[4096:]
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    twice = bytes([whole[0] ^ 128]) + whole[1:4096] + bytes([whole[4096] ^ 128]) + whole[4097:]
    for content in (zeroed, flipped, twice, whole[:-1], whole + b"1", b""):
        (checkpoint / "a").write_bytes(content)
        with pytest.raises(DamagedRecord, match="the file a is missing or has changed"):
            sums.check(checkpoint)
    (checkpoint / "a").write_bytes(whole)
    (checkpoint / "empty").unlink()
    with pytest.raises(DamagedRecord, match="the file empty is missing"):
        sums.check(checkpoint)
    (checkpoint / "empty").write_bytes(b"")
    os.replace(checkpoint / "a", checkpoint / "x")
    os.replace(checkpoint / "d" / "b", checkpoint / "a")
    os.replace(checkpoint / "x", checkpoint / "d" / "b")
    with pytest.raises(DamagedRecord, match="the file a "):
        sums.check(checkpoint)


def test_a_damaged_list_is_no_list(checkpoint: Path) -> None:
    path = checkpoint / sums.NAME
    path.write_text(path.read_text().replace("d/b", "d/B"))
    with pytest.raises(DamagedRecord, match="does not match its checksum"):
        sums.check(checkpoint)

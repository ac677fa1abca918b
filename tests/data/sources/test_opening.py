"""Files by their first bytes: compressed ones, misnamed ones, and those that are no data."""

import bz2
import gzip
import json
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.sources import expansion

ROW = {"prompt": "Name a fruit.", "teacher_response": "An apple."}
LINES = (json.dumps(ROW) + "\n").encode() * 3


def zstd(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson"])
def test_compressed_files(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(COMPRESS[ending](LINES))
    assert len(sources.read(path)) == 3
    misnamed = tmp_path / name
    misnamed.write_bytes(COMPRESS[ending](LINES))
    assert len(sources.read(misnamed)) == 3


@pytest.mark.parametrize("ending", COMPRESS)
def test_parts_one_after_another_are_one_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](LINES) * 2)
    assert len(sources.read(path)) == 6


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_damaged_files(tmp_path: Path, ending: str, keep: float) -> None:
    whole = COMPRESS[ending](os.urandom(200).hex().encode() * 20 + LINES)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=r"not a whole \w+ file|not JSON"):
        sources.read(path)
    path.write_bytes(LINES)
    with pytest.raises(UserError, match=r"a\.jsonl\.\w+: not a whole \w+ file \("):
        sources.read(path)


@pytest.mark.parametrize("ending", COMPRESS)
def test_bombs(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "FREE_BYTES", 2**20)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](b"\n" * 1000 + b'{"prompt": "' + b"a" * 2**23 + b'"}'))
    with pytest.raises(UserError, match="holds more than 200 times its"):
        sources.read(path, skip_invalid=True)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.dat"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LFS, "a Git LFS pointer, not the data; fetch the data with git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a web page, not data; download the file itself"),
        (b"\n <html><body>Sign in</body></html>", "a web page, not data; download the file"),
        (b'<?xml version="1.0"?><Error/>', "a web page, not data; download the file itself"),
    ],
)
def test_what_is_no_data(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_a_web_page_in_gzip_and_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"<html>"))
    with pytest.raises(UserError, match="a web page, not data"):
        sources.read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.jsonl", LINES)
    with pytest.raises(UserError, match="a zip archive or a spreadsheet; unpack it"):
        sources.read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_utf_16(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / name
    mark = "\ufeff" if encoding != "utf-16" else ""
    path.write_bytes((mark + LINES.decode()).encode(encoding))
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert str(caught.value) == (
        f"{name}:1: not UTF-8 at byte 1 but UTF-16; save it as UTF-8, for example with iconv -f "
        "UTF-16 -t UTF-8"
    )


def test_pipes_and_devices(tmp_path: Path) -> None:
    pipe = tmp_path / "a.jsonl"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), Path("/dev/stdin")):
        if path.exists() and not path.is_file():
            with pytest.raises(UserError, match="a pipe or a device, which is read once only"):
                sources.read(path)

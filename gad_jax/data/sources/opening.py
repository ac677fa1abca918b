"""Opens a file by what its first bytes say: compressed or not, and whether it is data at all."""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from gad_jax.base import files
from gad_jax.base.errors import UserError, first_line
from gad_jax.data.sources.expansion import ROW_BYTES, Expansion

_MAGIC = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"),
    "bzip2": (b"BZh",),
    "xz": (b"\xfd7zXZ\x00",),
}
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
_BUFFER_BYTES = 2**20
_OTHER = (
    (
        (b"version https://git-lfs",),
        "a Git LFS pointer, not the data; fetch the data with git lfs pull",
    ),
    (
        (b"<!doctype html", b"<html", b"<head", b"<?xml"),
        "a web page, not data; download the file itself, with a token if it needs one",
    ),
    ((b"pk\x03\x04",), "a zip archive or a spreadsheet; unpack it, or save the sheet as CSV"),
    ((b"%pdf",), "a PDF document, not data; give JSON Lines, CSV or Parquet"),
    ((b"sqlite format 3",), "a database, not rows; write its table to a CSV file"),
)


def head(path: Path) -> bytes:
    """Returns the first bytes of a file as it is stored; raises UserError for no regular file."""
    if kind := files.irregular(path):
        what = kind if kind == "a directory" else "a pipe or a device, which is read once only"
        raise UserError(f"{path}: {what}; write it to a file")
    with open(path, "rb") as file:
        return file.read(512)


def refuse_other(path: Path, begin: bytes) -> None:
    """Raises UserError for what is no data, such as a Git LFS pointer or a web page."""
    folded = begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for marks, said in _OTHER:
        if folded.startswith(marks):
            raise UserError(f"{path}: {said}")
    if begin[257:262] == b"ustar":
        raise UserError(f"{path}: a tar archive; unpack it, and give the directory")
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(
            f"{path.name}:1: not UTF-8 at byte 1 but UTF-16; save it as UTF-8, for example with "
            "iconv -f UTF-16 -t UTF-8"
        )


def stream(path: Path) -> io.BufferedReader:
    """Returns the bytes of a file, decompressed; raises UserError, also when they are read."""
    begin = head(path)
    refuse_other(path, begin)
    kind = next((kind for kind, marks in _MAGIC.items() if begin.startswith(marks)), None)
    opened: Any = io.BufferedReader(
        _Counted(path, COMPRESSED.get(path.suffix) or kind), _BUFFER_BYTES
    )
    refuse_other(path, opened.peek(512)[:512])
    return opened


class _Counted(io.RawIOBase):
    """The decompressed bytes of a file, with a bound on how many there are."""

    def __init__(self, path: Path, kind: str | None) -> None:
        self._path = path
        self._kind = kind
        self._expansion = Expansion(path)
        self._file: Any = _open(path, kind)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._file.read(len(buffer))
        except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._damaged(error) from error
        except OSError as error:
            if self._kind is None:
                raise
            raise self._damaged(error) from error
        rows = found.count(b"\n") + found.count(b"}") if self._kind else 0
        self._expansion.add(len(found) + ROW_BYTES * rows)
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"{self._path}: not a whole {self._kind} file ({first_line(error)}); download it again"
        )


def _open(path: Path, kind: str | None) -> BinaryIO | Any:
    if kind == "zstd":
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
    openers = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    return openers[kind](path) if kind else open(path, "rb")

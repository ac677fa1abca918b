"""Checksums of a checkpoint's files: its arrays' digests do not see the bytes that no array uses.

They are written after the checkpoint is complete. One that was killed in between has none, and is
verified by the digests of its arrays alone.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import xxhash

from gad_jax.base import files
from gad_jax.training.digest import DamagedRecord, sealed, unsealed

NAME = "meta/files.json"
_SEALED = (NAME, "meta/record.json")
"""Files that hold a checksum of themselves; a record may be written again, with a new score."""

_THREADS = 8
_BLOCK = 2**24


def write(checkpoint: Path) -> None:
    """Writes the checksum of every file; for the first process alone."""
    names = sorted(
        path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()
    )
    names = [name for name in names if name not in _SEALED]
    record = {"files": dict(zip(names, _sums(checkpoint, names), strict=True))}
    files.write_atomic(checkpoint / NAME, json.dumps(sealed(record)))


def check(checkpoint: Path) -> None:
    """Raises DamagedRecord for a file that has changed; each process reads its share of them."""
    try:
        text = (checkpoint / NAME).read_bytes()
    except FileNotFoundError:
        return
    listed = unsealed(text)["files"]
    mine = sorted(listed)[jax.process_index() :: jax.process_count()]
    for name, found in zip(mine, _sums(checkpoint, mine), strict=True):
        if found != listed[name]:
            raise DamagedRecord(f"the file {name} is missing or has changed on disk")


def _sums(checkpoint: Path, names: list[str]) -> list[str]:
    """Returns XXH3 (128 bits) of each file, empty for one that is missing."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_sum, (checkpoint / name for name in names)))


def _sum(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                hasher.update(block)
    except OSError:
        return ""
    return hasher.hexdigest()

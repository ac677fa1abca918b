"""SHA256SUMS next to a model: nothing else would notice a flipped bit.

The format is that of `sha256sum * > SHA256SUMS`, which makes one for any model.
"""

import hashlib
import re
from pathlib import Path

import xxhash

from gad_jax.base.errors import UserError

NAME = "SHA256SUMS"


_FOR_PEOPLE = ("README", "LICEN", "NOTICE", "COPY", "USE_POLICY")
"""How files begin that no program reads: a copy of the model may lack them."""


def write(directory: Path) -> None:
    """Writes the checksums of all files of a directory, those of its folders too."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != NAME)
    names = sorted(path.relative_to(directory).as_posix() for path in paths)
    lines = [f"{_digest(directory / name)}  {name}\n" for name in names]
    (directory / NAME).write_text("".join(lines), encoding="utf-8")


def check(directory: Path) -> None:
    """Raises UserError for a file with another checksum; does nothing without SHA256SUMS."""
    listing = directory / NAME
    if not listing.is_file():
        return
    for number, line in enumerate(listing.read_text("utf-8", "replace").splitlines(), start=1):
        found = re.fullmatch(r"([0-9a-f]{64}) [ *]((?:[^/\\]+/)*[^/\\]+)", line)
        if found is None or ".." in Path(found[2]).parts:
            raise UserError(
                f"{listing}:{number}: not a line of sha256sum; make the file again or remove it"
            )
        path = directory / found[2]
        if not path.exists() and path.name.upper().startswith(_FOR_PEOPLE):
            continue
        if not path.is_file() or _digest(path) != found[1]:
            raise UserError(
                f"{path} is not the file that {NAME} was made for: it is damaged or was changed; "
                f"fetch the model again, or remove {NAME} if the change is yours"
            )


def identity(directory: Path) -> str:
    """Returns XXH3 (128 bits) of a model's weights and of config.json, whatever their dates."""
    hasher = xxhash.xxh3_128()
    for path in sorted([*directory.glob("*.safetensors"), directory / "config.json"]):
        hasher.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(2**24):
                hasher.update(block)
    return hasher.hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

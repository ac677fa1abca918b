"""SHA256SUMS next to a model's weights: nothing else would notice a flipped bit.

The format is that of `sha256sum *.safetensors > SHA256SUMS`, which makes one for any model.
"""

import hashlib
import re
from pathlib import Path

from gad_jax.base.errors import UserError

NAME = "SHA256SUMS"


def write(directory: Path) -> None:
    """Writes the checksums of a directory's safetensors files."""
    lines = [f"{_digest(path)}  {path.name}\n" for path in sorted(directory.glob("*.safetensors"))]
    (directory / NAME).write_text("".join(lines), encoding="utf-8")


def check(directory: Path) -> None:
    """Raises UserError for a file with another checksum; does nothing without SHA256SUMS."""
    listing = directory / NAME
    if not listing.is_file():
        return
    for number, line in enumerate(listing.read_text("utf-8", "replace").splitlines(), start=1):
        found = re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\]+)", line)
        if found is None:
            raise UserError(
                f"{listing}:{number}: not a line of sha256sum; make the file again or remove it"
            )
        path = directory / found[2]
        if not path.is_file() or _digest(path) != found[1]:
            raise UserError(
                f"{path} is not the file that {NAME} was made for: it is damaged or was changed; "
                f"fetch the model again, or remove {NAME} if the change is yours"
            )


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

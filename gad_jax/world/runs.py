"""What experiments share: their directories, and runs of `gad_jax.train` that can be stopped."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gad_jax.base import exits, files
from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config

POLL_SECONDS = 0.2


def digest(text: str) -> str:
    """Returns a short fingerprint of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keep_settings(
    path: Path, kept: Mapping[str, Any], says: Callable[[str, Mapping[str, Any]], str]
) -> None:
    """Writes the settings that results depend on, or refuses a directory with others.

    `says` tells what is different, from the name of a setting and all settings before.
    """
    if not path.exists():
        files.write_atomic(path, json.dumps(kept, indent=1) + "\n")
        return
    before = json.loads(path.read_text("utf-8"))
    changed = [name for name in kept if before.get(name) != kept[name]]
    if changed:
        raise UserError(
            f"{path.parent} has {says(changed[0], before)}; give the same, or choose another --out"
        )


def read_flags(name: str, flags: Sequence[str]) -> Config:
    """Returns the settings of a method's run. Raises UserError, led by its name, for flags that
    training refuses."""
    try:
        return options.read(Config, flags, program="", description="")
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def train(flags: Sequence[str], log: Path, stop: exits.StopRequest, name: str) -> bool:
    """Trains in a process of its own; returns False if a stop request interrupted it.

    Raises UserError, led by the name of the run, where it fails.
    """
    command = [sys.executable, "-m", "gad_jax.train", *flags]
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while child.poll() is None and not stop.requested:
                time.sleep(POLL_SECONDS)
        finally:
            child.terminate()
            code = child.wait()
    if stop.requested:
        return False
    if code:
        raise UserError(f"{name}: training ended with exit code {code}; {log} says why")
    return True

"""A server as a user starts it: a separate process, on a free port of this computer."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import compiling

ROOT = Path(__file__).parents[2]


@dataclass
class Server:
    """A server that listens; `address` is as it printed it."""

    process: "subprocess.Popen[str]"
    address: str

    def end(self) -> tuple[int, str]:
        """Ends it as a scheduler would; returns the exit code and what it said on stderr."""
        self.process.send_signal(signal.SIGTERM)
        errors = self.process.communicate(timeout=30)[1]
        return self.process.returncode, errors


@contextlib.contextmanager
def serving(*arguments: object, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Runs `python -m gad_jax.serve` until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gad_jax.serve", "--port=0", *map(str, arguments)],
        env=os.environ
        | {"XLA_FLAGS": compiling.XLA_FLAGS, "PYTHONPATH": str(ROOT)}
        | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Server(process, _address(process))
    finally:
        process.kill()
        process.communicate()


def _address(process: Any) -> str:
    for line in process.stdout:
        if " serves " in line:
            return line.split(" ")[0]
    raise AssertionError(process.stderr.read())

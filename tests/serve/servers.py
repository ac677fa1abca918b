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
    """A server that listens; `address` is as it printed it, `before` what it said until then."""

    process: "subprocess.Popen[str]"
    address: str
    before: list[str]

    def end(self) -> tuple[int, str]:
        """Ends it as a scheduler would; returns the exit code and what it said on stderr."""
        self.process.send_signal(signal.SIGTERM)
        errors = self.process.communicate(timeout=300)[1]
        return self.process.returncode, errors


@contextlib.contextmanager
def serving(
    *arguments: object, environment: dict[str, str] | None = None, warm: bool = False
) -> Iterator[Server]:
    """Runs `python -m gad_jax.serve` until the end of the block.

    Without `warm` it compiles what it is asked for, which is less.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "gad_jax.serve", "--port=0", f"--warm={warm}", *map(str, arguments)],
        env=os.environ
        | {"XLA_FLAGS": compiling.XLA_FLAGS, "PYTHONPATH": str(ROOT)}
        | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        before = _lines(process)
        yield Server(process, before.pop().split(" ")[0], before)
    finally:
        process.kill()
        process.communicate()


def _lines(process: Any) -> list[str]:
    """Returns the lines up to the one with the address."""
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if " serves " in line:
            return lines
    raise AssertionError(process.stderr.read())

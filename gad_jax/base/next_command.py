"""The last line of a command: what to type next, ready to be copied.

collect → collect check → train → evaluate → serve; the other commands join where they fit.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def say(command: str, *arguments: str, to_stderr: bool = False) -> None:
    """Prints the next command; `to_stderr` where standard output is for other programs.

    `say("evaluate", "runs/mine")` prints `next: python -m gad_jax.evaluate runs/mine`.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    print(f"next: {line(command, *arguments)}", file=stream, flush=True)


def line(command: str, *arguments: str) -> str:
    """Returns a command, quoted for a shell, by `gad-jax` or `python -m` as this one was called."""
    as_script = Path(sys.argv[0]).name == "gad-jax"
    program = ["gad-jax", command] if as_script else ["python", "-m", f"gad_jax.{command}"]
    return shlex.join([*program, *arguments])


def without(argv: Sequence[str], flag: str) -> list[str]:
    """Returns the arguments of a command without a boolean flag, in any of its forms."""
    kept: list[str] = []
    skip = False
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if skip:
            skip = False
        elif argument == flag:
            skip = following.lower() in ("true", "false")
        elif not argument.startswith(f"{flag}="):
            kept.append(argument)
    return kept

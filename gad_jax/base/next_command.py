"""The last line of a command: what to type next, ready to be copied.

collect → collect check → train → evaluate → serve; the other commands join where they fit.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def say(command: str, *arguments: str, to_stderr: bool = False, width: int = 0) -> None:
    """Prints the next command; `to_stderr` where standard output is for other programs.

    `say("evaluate", "runs/mine")` prints `next: python -m gad_jax.evaluate runs/mine`. With a
    `width`, a longer command continues on further lines, as a shell reads it.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    said = f"next: {line(command, *arguments)}"
    if width:
        said = _wrapped(["next:", *_program(command), *map(shlex.quote, arguments)], width)
    print(said, file=stream, flush=True)


def _wrapped(words: Sequence[str], width: int) -> str:
    lines = [words[0]]
    for word in words[1:]:
        if len(f"{lines[-1]} {word} \\") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}")
    return " \\\n".join(lines)


def line(command: str, *arguments: str) -> str:
    """Returns a command, quoted for a shell, by `gad-jax` or `python -m` as this one was called."""
    return shlex.join([*_program(command), *arguments])


def _program(command: str) -> list[str]:
    as_script = Path(sys.argv[0]).name == "gad-jax"
    return ["gad-jax", command] if as_script else ["python", "-m", f"gad_jax.{command}"]


def without(argv: Sequence[str], flag: str) -> list[str]:
    """Returns the arguments of a command without a boolean flag, in any of its forms."""
    kept: list[str] = []
    skip = False
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):
        if skip:
            skip = False
        elif argument == flag:
            skip = following.lower() in ("true", "false")
        elif not argument.startswith(f"{flag}="):
            kept.append(argument)
    return kept

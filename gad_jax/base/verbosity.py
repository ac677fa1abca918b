"""How much a command says: all it does, with --quiet the result alone, with --verbose more."""

import sys
from collections.abc import Iterable, Sequence

from gad_jax.base.errors import UserError

FLAGS = {
    "--quiet": "say only warnings, errors and the result",
    "--verbose": "say more: all metrics of a step, and what libraries log",
}

_given: set[str] = set()


def choose(argv: Sequence[str]) -> list[str]:
    """Sets how much is said by the flags of a command line; returns its other arguments.

    A flag may have a value, as in --quiet=true. Raises UserError for both flags, or another value.
    """
    _given.clear()
    rest = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if flag not in FLAGS:
            rest.append(argument)
        elif equals and value.lower() not in ("true", "false"):
            raise UserError(f"{argument}: true or false is needed; got {value!r}")
        elif value.lower() != "false":
            _given.add(flag)
    if len(_given) > 1:
        _given.clear()
        raise UserError("--quiet and --verbose are both given; give one of them")
    return rest


def quiet() -> bool:
    """Whether only warnings, errors and the result are shown."""
    return "--quiet" in _given


def verbose() -> bool:
    """Whether more is shown than what most people read."""
    return "--verbose" in _given


def say(lines: str | Iterable[str], to_stderr: bool = False) -> None:
    """Prints what a command does, line by line; with --quiet its warnings alone."""
    several = lines.splitlines() if isinstance(lines, str) else list(lines)
    shown = [line for line in several if not quiet() or line.startswith("warning:")]
    if shown:
        print("\n".join(shown), file=sys.stderr if to_stderr else sys.stdout, flush=True)

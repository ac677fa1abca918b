"""`gad-jax COMMAND`, the same as `python -m gad_jax.COMMAND`; without a command, the list of them.

Imports only the command that it runs.
"""

import ast
import contextlib
import importlib
import sys
from pathlib import Path

from gad_jax import __version__
from gad_jax.base.errors import UserError, stop

COMMANDS = (
    *("train", "generate", "evaluate", "export", "serve", "collect", "plan", "bench", "toy"),
    "world",
)
"""In the order in which people meet them."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first argument names; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        with contextlib.suppress(BrokenPipeError):  # of `gad-jax | head`
            print(_overview())
        return 0
    if name == "--version":
        print(f"gad-jax {__version__}")
        return 0
    if name not in COMMANDS:
        from gad_jax.settings.fields import did_you_mean

        known = did_you_mean(name, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        stop(UserError(f"{name!r} is not a command{known}"))
    return importlib.import_module(_module(name)).main(rest)


def _overview() -> str:
    lines = "\n".join(f"  {name:10}{summary(name)}" for name in COMMANDS)
    return (
        "usage: gad-jax COMMAND [--help] [--name=value …]\n\n"
        f"{lines}\n\n"
        "gad-jax COMMAND --help shows the settings of a command. gad-jax --version shows the "
        "version."
    )


def summary(name: str) -> str:
    """What a command does: the first sentence of its module's docstring, read without importing."""
    source = Path(__file__).parent.joinpath(*_module(name).split(".")[1:]).with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].partition(": ")[2].rstrip(".")


def _module(name: str) -> str:
    """The module of a command: a file, or the `__main__` of a folder."""
    folder = Path(__file__).parent / name
    return f"gad_jax.{name}.__main__" if folder.is_dir() else f"gad_jax.{name}"


if __name__ == "__main__":
    sys.exit(main())

"""The exceptions that commands show as one sentence, without a traceback."""

import os
import sys
import traceback
from typing import NoReturn

from gad_jax.base.redaction import printable, redact

DEBUG = "GAD_JAX_DEBUG"
"""Environment variable that shows the tracebacks of all errors; --debug sets it."""


class UserError(ValueError):
    """A mistake in what the user gave; shown as one sentence, exit code 2."""


def sentence(error: BaseException) -> str:
    """Returns what is shown of an error: its sentence, and with --debug the traceback before it."""
    shown = str(error)
    if os.environ.get(DEBUG):
        shown = "".join(traceback.format_exception(error)) + shown
    return printable(redact(shown))  # a server may have sent part of it


def first_line(error: BaseException, *, with_class: bool = False) -> str:
    """Returns the first line of an error's text, at most 300 characters: some libraries' errors run
    over pages. `with_class` leads it with the class; an error without text is its class alone."""
    name = type(error).__name__
    lines = str(error).strip().splitlines()
    if not lines:
        return name
    return f"{name}: {lines[0][:300]}" if with_class else lines[0][:300]


def stop(error: UserError) -> NoReturn:
    """Shows the sentence on stderr and ends the process with exit code 2."""
    print(sentence(error), file=sys.stderr)
    raise SystemExit(2)


class NumericsError(RuntimeError):
    """Numbers that are not finite: too many skipped steps, or weights that must not be saved or
    exported; exit code 10."""


class CollapseError(RuntimeError):
    """A monitor stopped a run that no longer learns; exit code 11."""


class StorageError(RuntimeError):
    """A checkpoint could not be written or read; exit code 12."""


class LostProcessError(RuntimeError):
    """Another process of the run ended; exit code 14."""


class OutOfMemoryError(RuntimeError):
    """Memory ran out while something was computed; exit code 15."""

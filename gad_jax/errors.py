"""The exceptions that commands show as one sentence, without a traceback."""

import sys
from typing import NoReturn


class UserError(ValueError):
    """A mistake in what the user gave; shown as one sentence, exit code 2."""


def stop(error: UserError) -> NoReturn:
    """Shows the sentence on stderr and ends the process with exit code 2."""
    print(error, file=sys.stderr)
    raise SystemExit(2)


class NumericsError(RuntimeError):
    """Too many steps in a row were skipped for a non-finite gradient; exit code 10."""


class CollapseError(RuntimeError):
    """A monitor stopped a run that no longer learns; exit code 11."""


class StorageError(RuntimeError):
    """A checkpoint could not be written or read; exit code 12."""


class LostProcessError(RuntimeError):
    """Another process of the run ended; exit code 14."""

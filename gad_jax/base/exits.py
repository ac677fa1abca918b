"""How a command ends: exit codes, signals, the watchdog.

Imports no jax, so that `--help` and a second run on a busy directory answer at once.
"""

import contextlib
import enum
import errno
import faulthandler
import functools
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from gad_jax.base import shortage, stderr
from gad_jax.base.errors import (
    CollapseError,
    LostProcessError,
    NumericsError,
    OutOfMemoryError,
    StorageError,
    UserError,
    sentence,
)
from gad_jax.base.redaction import printable, redact, redact_logs


class Exit(enum.IntEnum):
    """Exit codes of every command. Others: 1 is the watchdog's, 130 and 143 are an interrupted
    start, 141 means that the reader of the output has ended."""

    OK = 0
    USER = 2
    DOES_NOT_FIT = 3
    NUMERICS = 10
    COLLAPSE = 11
    STORAGE = 12
    UNEXPECTED = 13
    LOST_PROCESS = 14
    OUT_OF_MEMORY = 15


EXIT_CODES: dict[type[Exception], Exit] = {
    UserError: Exit.USER,
    NumericsError: Exit.NUMERICS,
    CollapseError: Exit.COLLAPSE,
    StorageError: Exit.STORAGE,
    LostProcessError: Exit.LOST_PROCESS,
    OutOfMemoryError: Exit.OUT_OF_MEMORY,
}
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM),
}

SELDOM = (20_000, 10, 20)
"""What `gc.set_threshold` takes, whose own are 700, 10 and 10. More would gain nothing, and arrays
that a cycle holds are to be freed soon."""


def run_guarded(main: Callable[[], int]) -> int:
    """Returns what `main` returns; an exception ends the process here, at once.

    Our own errors are shown as one sentence (with --debug, after a traceback), others with a
    traceback, all without secrets. `EXIT_CODES` gives the code. The process ends by `os._exit`: a
    normal exit joins Orbax's threads, which wait for other processes that wait for this one.
    """
    redact_logs()
    _spare_the_cores()
    before = sys.unraisablehook
    sys.unraisablehook = functools.partial(_not_raised, before)
    try:
        return main()
    except SystemExit:  # argparse, after --help or a wrong flag
        raise
    except KeyboardInterrupt:
        _fail(128 + signal.SIGINT, "interrupted")
    except tuple(EXIT_CODES) as error:
        code = next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
        _fail(code, sentence(error))
    except BrokenPipeError:  # as `| head` leaves us
        _fail(128 + signal.SIGPIPE, "stopped: whatever read the output has ended")
    except BaseException as error:
        if _interrupted(error):
            _fail(128 + signal.SIGINT, "interrupted")
        _fail(*_unexpected(error))
    finally:
        sys.unraisablehook = before
    raise AssertionError("not reached")


def _not_raised(show: Callable[[Any], object], ignored: Any) -> None:
    """Ends the process at a Ctrl-C that Python cannot raise where it came: jax has a callback for
    the garbage collection. Other exceptions are shown."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default and isinstance(ignored.exc_value, KeyboardInterrupt):
        _fail(128 + signal.SIGINT, "interrupted")
    show(ignored)


def _interrupted(error: BaseException) -> bool:
    """Returns whether an exception was made from a Ctrl-C, as some libraries do while they load."""
    seen: list[BaseException] = []
    cause = error.__cause__
    while cause is not None and cause not in seen:
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.append(cause)
        cause = cause.__cause__
    return False


def _spare_the_cores() -> None:
    """Lets Python look for cycles less often: imports and tracing make many objects and hardly any
    garbage, and looking for it took an eighth of the CPU time of a short run.

    Lets numpy and scipy, not yet imported, compute in one thread. Their matrices are small, and
    threads that wait for each other took fifty times as long on busy cores.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if 0 < gc.get_threshold()[0] < SELDOM[0]:  # 0: whoever started this has switched it off
        gc.set_threshold(*SELDOM)


def _unexpected(error: BaseException) -> tuple[int, str]:
    """Returns the code and the words of an error that is none of ours: a disk that is full, memory
    that ran out, or something that nobody thought of, with its traceback."""
    ran_out = shortage.what_ran_out(error)
    if ran_out is not None:
        shown = OutOfMemoryError(f"{ran_out}; {shortage.GENERAL}")
        shown.__cause__ = error  # for --debug
        return Exit.OUT_OF_MEMORY, sentence(shown)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        place = error.filename or "a file of the run"
        words = f"{place} could not be read or written: {error.strerror}"
        return Exit.STORAGE, sentence(StorageError(words))
    return Exit.UNEXPECTED, printable(redact(traceback.format_exc().rstrip()))


def _fail(code: int, said: str) -> None:
    stderr.release()
    _say(said)
    _leave(code)


def _say(line: str) -> None:
    """Writes a line to stderr, past Python's buffers: signal handlers may not use those."""
    with contextlib.suppress(OSError):
        os.write(2, f"{_clear_bar()}{line}\n".encode(errors="replace"))


def _clear_bar() -> str:
    """Returns what removes a progress bar from the terminal's last line."""
    return "\r\x1b[K" if os.isatty(2) and not stderr.is_dumb() else ""


def _leave(code: int) -> None:
    with contextlib.suppress(ValueError):  # not the main thread
        # Another Ctrl-C ends the process by itself: raised in here, it would lead back to the body.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, _clear_bar().encode())
    os._exit(code)


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request to stop after the current step.

    The loop sets `ready` after its first step and looks at `requested` after each step. A signal
    before that ends the process at once, as there is nothing to save. A second Ctrl-C always ends
    it. A second SIGTERM is ignored, so that it cannot cut the last save short.

        with StopRequest() as stop:
            while not stop.requested: ...; stop.ready = True

    `asked` and `forced` are what the first and the second Ctrl-C say.
    """

    def __init__(
        self,
        asked: str = "stopping after this step",
        forced: str = "stopped at once; the last complete checkpoint is intact",
    ) -> None:
        self.requested = False
        self.asked, self.forced = asked, forced
        self.ready = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self.ready:
            stderr.restore()
            _say("stopped before the first step; nothing was saved")
            os._exit(128 + number)
        if self.requested and number == signal.SIGINT:
            stderr.restore()
            _say(self.forced)
            os._exit(128 + number)
        if not self.requested:
            _say(f"{self.asked}; press Ctrl-C again to stop at once")
        self.requested = True


def watchdog(seconds: float) -> None:
    """Ends the process with code 1 and the stacks of all threads, unless called again in time.

    Each call replaces the one before; 0 switches it off. Without it nobody notices a step that
    hangs while its peers wait. Compiling, restoring and evaluation need more time.
    """
    faulthandler.cancel_dump_traceback_later()
    if seconds > 0:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)

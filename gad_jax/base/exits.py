"""How a command begins and ends: exit codes, signals, the run's lock, the watchdog, safe writes.

Imports no jax, so that `--help` and a second run on a busy directory answer at once.
"""

import contextlib
import datetime
import enum
import errno
import faulthandler
import json
import logging
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import filelock

from gad_jax.base.errors import (
    CollapseError,
    LostProcessError,
    NumericsError,
    StorageError,
    UserError,
    sentence,
)
from gad_jax.base.redaction import redact, redact_logs


class Exit(enum.IntEnum):
    """Exit codes of every command; 1 is the watchdog's, 130 and 143 an interrupted start, 141 when
    whatever read the output has ended."""

    OK = 0
    USER = 2
    NUMERICS = 10
    COLLAPSE = 11
    STORAGE = 12
    UNEXPECTED = 13
    LOST_PROCESS = 14


EXIT_CODES: dict[type[Exception], Exit] = {
    UserError: Exit.USER,
    NumericsError: Exit.NUMERICS,
    CollapseError: Exit.COLLAPSE,
    StorageError: Exit.STORAGE,
    LostProcessError: Exit.LOST_PROCESS,
}
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM),
}


def run_guarded(main: Callable[[], int]) -> int:
    """Returns what `main` returns; an exception ends the process here, at once.

    Our own errors are shown as one sentence (with --debug, after a traceback) and others with a
    traceback, all without secrets; `EXIT_CODES` gives the code. The process is left by `os._exit`:
    an ordinary exit joins Orbax's threads, which wait for the other processes while those wait for
    this one.
    """
    redact_logs()
    try:
        return main()
    except SystemExit:  # argparse, after --help or a wrong flag
        raise
    except KeyboardInterrupt:
        _say("interrupted")
        _leave(128 + signal.SIGINT)
    except tuple(EXIT_CODES) as error:
        _say(sentence(error))
        _leave(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
    except BrokenPipeError:  # as `| head` leaves us
        _say("stopped: whatever read the output has ended")
        _leave(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            _say(redact(traceback.format_exc().rstrip()))
            _leave(Exit.UNEXPECTED)
        place = error.filename or "a file of the run"
        _say(sentence(StorageError(f"{place} could not be read or written: {error.strerror}")))
        _leave(Exit.STORAGE)
    except BaseException:
        _say(redact(traceback.format_exc().rstrip()))
        _leave(Exit.UNEXPECTED)
    raise AssertionError("not reached")


def _say(line: str) -> None:
    """Writes a line to stderr, past Python's buffers: signal handlers may not use those."""
    with contextlib.suppress(OSError):
        os.write(2, f"{_clear_bar()}{line}\n".encode(errors="replace"))


def _clear_bar() -> str:
    """Returns what removes a progress bar from the terminal's last line."""
    return "\r\x1b[K" if os.isatty(2) else ""


def _leave(code: int) -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(OSError):
        os.write(2, _clear_bar().encode())
    os._exit(code)


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request to stop after the current step.

    The loop sets `ready` when its first step is done and looks at `requested` after each. A signal
    before that ends the process at once, as there is nothing to save; a second Ctrl-C always does.
    A second SIGTERM is ignored, so that it cannot cut the last save short.

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
            _say("stopped before the first step; nothing was saved")
            os._exit(128 + number)
        if self.requested and number == signal.SIGINT:
            _say(self.forced)
            os._exit(128 + number)
        if not self.requested:
            _say(f"{self.asked}; press Ctrl-C again to stop at once")
        self.requested = True


def stop_time(must_save_by: str, margin_minutes: float) -> float:
    """Returns when the run must begin to save for the last time, in seconds since 1970.

    That is `margin_minutes` before the given time (ISO 8601, local unless it says otherwise) or
    before the end of the Slurm job, whichever is earlier; infinity where neither is known. Raises
    UserError when that is past.
    """
    job = os.environ.get("SLURM_JOB_END_TIME", "")
    end = float(job) if job.isdigit() else math.inf
    if must_save_by:
        end = min(end, datetime.datetime.fromisoformat(must_save_by).timestamp())
    if time.time() > end - 60 * margin_minutes:
        when = datetime.datetime.fromtimestamp(end).isoformat(" ", "minutes")
        raise UserError(
            f"the run has to end at {when}, which leaves no step before the "
            f"--checkpoint.margin_minutes={margin_minutes:g} for saving; give it more time"
        )
    return end - 60 * margin_minutes


@contextlib.contextmanager
def lock_run(run_dir: str | os.PathLike[str], flag: str = "--run_dir") -> Iterator[None]:
    """Holds the run directory, which is made if needed, against a second run.

    The system releases the lock when its process ends, however it ends. Raises UserError naming the
    holder, or when the directory cannot be used.
    """
    with _lock(f"the run directory {run_dir}", Path(run_dir) / ".lock", flag):
        yield


@contextlib.contextmanager
def lock_file(path: str | os.PathLike[str], flag: str) -> Iterator[None]:
    """Holds a file, which need not exist, as `lock_run` holds a directory."""
    path = Path(path)
    with _lock(str(path), path.with_name(f".{path.name}.lock"), flag):
        yield


@contextlib.contextmanager
def _lock(what: str, place: Path, flag: str) -> Iterator[None]:
    holder = place.with_name(f"{place.name}.json")
    lock = filelock.FileLock(place, timeout=0)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"{what} is in use by {_read_holder(holder)}; stop that run, or choose another {flag}"
        ) from error
    except OSError as error:
        raise UserError(
            f"{what} cannot be used ({error.strerror}); choose another {flag}"
        ) from error
    try:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        about = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        write_atomic(holder, json.dumps(about))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _read_holder(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
        return f"process {about['pid']} on {about['host']}, started {about['started']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def watchdog(seconds: float) -> None:
    """Ends the process with code 1 and the stacks of all threads, unless called again in time.

    Each call replaces the one before; 0 switches it off. A step that hangs, with its peers waiting
    for it, is not noticed otherwise. Compiling, restoring and evaluation need more time.
    """
    faulthandler.cancel_dump_traceback_later()
    if seconds > 0:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)


def clear_partials(directory: Path) -> None:
    """Removes what `write_atomic` left in processes that were killed, anywhere below."""
    for path in directory.rglob(".*.partial"):
        if path.is_file():
            path.unlink()


def make_writable(directory: str | os.PathLike[str], flag: str) -> None:
    """Makes a directory if needed. Raises UserError, led by the flag, where no file can be made in
    it: better before the work than after it."""
    directory = Path(directory)
    probe = directory / f".probe.{os.getpid()}.partial"  # named as `clear_partials` finds it
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{flag}: {directory} cannot be written ({error.strerror}); choose another place"
        ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Gives a file that takes the place of `path` at the end: a crash or an error leaves the
    old content or the new, never a part."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as of a full disk
            error.filename = str(path)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a small file as `replacing` does."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)

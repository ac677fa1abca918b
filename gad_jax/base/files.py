"""Files that survive a crash: atomic writes, locks on run directories, cleanup of partial files.

And what a user's words for a place mean.
"""

import contextlib
import fcntl
import itertools
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from gad_jax.base.errors import UserError


def from_home(value: Any) -> Any:
    """Returns text, or each of a tuple, with the home directory for ~ where a path begins or is it.

    That is at the start, after a comma, and after the = of a name.
    """
    if isinstance(value, tuple):
        return tuple(map(from_home, value))
    home = os.path.expanduser
    return re.sub(r"(^|[,=]\s*)(~/|~(?=,|$))", lambda found: found[1] + home(found[2]), value)


@contextlib.contextmanager
def lock_run(run_dir: str | os.PathLike[str], flag: str = "--run_dir") -> Iterator[None]:
    """Locks the run directory, which is made if needed, against a second run.

    The system releases the lock when the process ends, also after kill -9. Raises UserError that
    names the holder, or says that the directory cannot be used.
    """
    with _lock(f"the run directory {run_dir}", Path(run_dir) / ".lock", flag):
        yield


@contextlib.contextmanager
def lock_file(path: str | os.PathLike[str], flag: str) -> Iterator[None]:
    """Locks a file, which need not exist yet, as `lock_run` locks a directory.

    Symbolic and hard links of the file are locked with it: the lock is next to the real file, and
    on its inode. If the file is made later, `hold` locks the inode then.
    """
    real = Path(os.path.realpath(path))
    if kind := irregular(real):
        raise UserError(
            f"{flag}: {path} cannot be read or written: it is {kind} and no file; name a regular "
            "file"
        )
    with _lock(str(path), real.with_name(f".{real.name}.lock"), flag):
        _held[real] = None
        try:
            if not hold(real):
                raise UserError(
                    f"{path} is in use by another process under another name; stop that run, or "
                    f"choose another {flag}"
                )
            yield
        finally:
            descriptor = _held.pop(real)
            if descriptor is not None:
                os.close(descriptor)


_held: dict[Path, int | None] = {}
"""The files that `lock_file` holds, and a descriptor with the lock of the inode."""


def hold(path: str | os.PathLike[str]) -> bool:
    """Locks the inode of a file that `lock_file` holds and that may not have existed before.
    Returns False if another process has it. Does nothing for other files."""
    real = Path(os.path.realpath(path))
    if real not in _held or _held[real] is not None or not real.exists():
        return True
    descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # a file system without such locks
        os.close(descriptor)
        return True
    _held[real] = descriptor
    return True


_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def irregular(path: str | os.PathLike[str]) -> str:
    """Returns what a path is if it is there and no regular file: reading it may never end. Empty
    for a regular file, and for nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    return next((kind for test, kind in _KINDS if test(mode)), "")


def need_regular(path: str | os.PathLike[str]) -> None:
    """Raises UserError for what is there and no regular file."""
    if kind := irregular(path):
        raise UserError(f"{path} is {kind} and no file; give a regular file in its place")


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


def clear_partials(directory: Path) -> None:
    """Removes the partial files of `write_atomic` that killed processes left below a directory."""
    for path in directory.rglob(".*.partial"):
        if path.is_file():
            path.unlink()


def make_writable(directory: str | os.PathLike[str], flag: str) -> None:
    """Makes a directory if needed. Raises UserError, led by the flag, if no file can be made in it.
    Call it before the work, so that the work is not done in vain."""
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
    """Yields a file that replaces `path` at the end. A crash or an error leaves the old content or
    the new one, never a part."""
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
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Has the names in a directory survive a power failure: of new files, and of renamed ones."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a small file in one step, as `replacing` does."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def fresh(path: Path) -> Path:
    """Returns the path, or `a.2.jsonl` and so on for `a.jsonl` where there is such a file."""
    numbers = (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in itertools.count(2))
    return next(free for free in itertools.chain([path], numbers) if not free.exists())

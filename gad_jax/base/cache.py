"""The directory where files made once are kept between runs."""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from gad_jax.base.errors import UserError

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The cache directory: `$GAD_JAX_CACHE`, or `~/.cache/gad_jax`. It need not exist yet."""
    return Path(os.environ.get("GAD_JAX_CACHE") or "~/.cache/gad_jax").expanduser().absolute()


def program_dir() -> Path:
    """Where compiled programs are kept: `$JAX_COMPILATION_CACHE_DIR`, or xla in the cache."""
    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache_dir() / "xla")


def create_once(name: str, write: Callable[[Path], None], needs_bytes: int = 0) -> Path:
    """The directory `name` of the cache, made by `write(directory)` the first time.

    It appears complete or not at all: it is written next to its final place, flushed and renamed,
    under a lock that makes other processes wait for the first. What a killed process left is
    cleared.

    Raises UserError if the cache cannot be written or has less than `needs_bytes` bytes free.
    """
    from safetensors import SafetensorError  # what it raises for a full disk is no OSError

    target = cache_dir() / name
    if target.is_dir():
        return target
    partial = target.with_name(f".{name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(f".{name}.lock"), name):
            if target.is_dir():
                return target
            shutil.rmtree(partial, ignore_errors=True)
            free = shutil.disk_usage(target.parent).free
            if free < needs_bytes:
                raise UserError(
                    f"{target.parent} has {free // 10**6} MB free and {name} needs "
                    f"{needs_bytes // 10**6}; free some or set GAD_JAX_CACHE to another directory"
                )
            partial.mkdir()
            try:
                write(partial)
                for path in (*partial.rglob("*"), partial):
                    if path.is_file():  # safetensors writes 0600, which a shared cache cannot use
                        path.chmod(partial.stat().st_mode & 0o666)
                    _flush(path)
                os.replace(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {target} ({getattr(error, 'strerror', None) or error}); "
            "set GAD_JAX_CACHE to a directory that can be written"
        ) from error
    return target


def _lock(path: Path, name: str) -> AbstractContextManager[object]:
    """`path` as a held lock; says so before it waits for another process."""
    from filelock import FileLock, Timeout  # here: `--help` need not pay for it

    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that is making %s", name)
        return lock.acquire()


def _flush(path: Path) -> None:
    """Forces a file or a directory to disk; a rename alone may outlive the data it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

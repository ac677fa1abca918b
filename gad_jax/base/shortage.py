"""Memory that ran out, as one sentence. Every command's errors pass through here.

The kinds: Python's and numpy's MemoryError, what the operating system refuses, and XLA's errors at
compile time and at run time. A process that the kernel kills says nothing, so runs are also checked
before they begin (`training/preflight.py`). Imports no jax.
"""

import contextlib
import errno
import re
import sys
from collections.abc import Callable, Iterator

from gad_jax.base import host_memory
from gad_jax.base.errors import OutOfMemoryError

_OF_XLA = {"JaxRuntimeError", "XlaRuntimeError", "InternalError", "ValueError", "RuntimeError"}
_SIGNS = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|bad_alloc|ran out of memory|OUT_OF_MEMORY|"
    r"ALLOC_FAILED|cannot allocate memory|can't start new thread|exceed\w* hbm capacity",
    re.IGNORECASE,
)
_OF_OTHERS = re.compile(r"grpc|quota|rate.?limit|too many requests", re.IGNORECASE)
_SIZE = r"(\d[\d.,]*)\s*([KMGTPE]?)(i?)(?:B\b|bytes?\b|\b)"
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
GENERAL = "close other programs, or use a smaller model or fewer tokens at once"


@contextlib.contextmanager
def explained(advice: Callable[[], str]) -> Iterator[None]:
    """Inside, memory that runs out raises OutOfMemoryError with what `advice` returns."""
    try:
        yield
    except Exception as error:
        found = what_ran_out(error)
        if found is None:
            raise
        words = GENERAL
        with contextlib.suppress(Exception):  # there may be no memory for an answer either
            words = advice() or words
        raise OutOfMemoryError(f"{found}; {words}") from error


def what_ran_out(error: BaseException) -> str | None:
    """Returns what ran out and by how much, from an error; None if it is of another kind."""
    text = " ".join(str(error).split())
    if isinstance(error, OutOfMemoryError):
        return None
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return _said(text, of_xla=False)
    known = type(error).__name__ in _OF_XLA and _SIGNS.search(text)
    if not known or _OF_OTHERS.search(text):
        return None
    return _said(text, of_xla=True)


def gigabytes(size: int | float) -> str:
    """Returns a number of bytes as text: 12.3 GB, 0.052 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 9.95e9 else f"{size / 1e9:.2g} GB"


def _said(text: str, of_xla: bool) -> str:
    used = re.search(rf"used {_SIZE} of {_SIZE}", text, re.IGNORECASE)
    if used:
        needed, there = _bytes(used.groups()[:3]), _bytes(used.groups()[3:])
        return (
            f"out of memory: a program needs {gigabytes(needed)} of a device with "
            f"{gigabytes(there)}, {gigabytes(needed - there)} too little"
        )
    asked = re.search(rf"(?:allocat\w*|reserve)\s+(?:about\s+)?{_SIZE}", text, re.IGNORECASE)
    compiling = re.search(r"compil|program", text, re.IGNORECASE)
    size = f"an allocation of {gigabytes(_bytes(asked.groups()))}" if asked else "an allocation"
    where = "while compiling, " if compiling else ""
    return f"out of memory: {where}{size} failed; {_there(of_xla)}"


def _there(of_xla: bool) -> str:
    """Returns how much memory there is, and how much of it is held: the device's or the host's."""
    jax = sys.modules.get("jax")
    if of_xla and jax is not None and jax.default_backend() != "cpu":
        stats = jax.local_devices()[0].memory_stats() or {}
        most, held = (stats.get(name, 0) for name in ("bytes_limit", "bytes_in_use"))
        return f"the device gives {gigabytes(most)}, and this process holds {gigabytes(held)}"
    most = host_memory.limit()
    held = gigabytes(host_memory.used())
    return f"{most.source} gives {gigabytes(most.bytes)}, and this process holds {held}"


def _bytes(parts: tuple[str, ...]) -> float:
    number, prefix, binary = parts
    base = 1024 if binary or prefix else 1
    return float(number.replace(",", "").rstrip(".")) * base ** _UNITS[prefix.upper()]

"""How much memory this process may have, and has: the machine's, a container's, or `ulimit -v`.

Linux answers all of it; elsewhere only the machine's memory is known. Imports no jax.
"""

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


class Limit(NamedTuple):
    """The most bytes of memory that this process can have, and what sets that limit."""

    bytes: int
    source: str


def limit() -> Limit:
    """Returns the smallest of the limits that hold for this process."""
    found = [Limit(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine")]
    if (contained := _cgroup()) is not None:
        found.append(Limit(contained, "this container (cgroup)"))
    if (virtual := _address_space()) is not None:
        found.append(Limit(virtual, "`ulimit -v`"))
    return min(found)


def used() -> int:
    """Returns the bytes that this process occupies now; 0 where that is not known."""
    return _status("VmRSS")


def available() -> int:
    """Returns the bytes that this process can still get, others being as they are."""
    most = limit()
    left = most.bytes - used()
    for line in _lines(PROC / "meminfo"):
        if line.startswith("MemAvailable:"):
            return max(min(left, 1024 * int(line.split()[1])), 0)
    return max(left, 0)


def give_back() -> None:
    """Returns freed memory to the system, which glibc otherwise keeps for this process."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def _address_space() -> int | None:
    """Returns what fits under `ulimit -v`: that limits addresses, and libraries take many."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    return max(soft - _status("VmSize"), 0) + used()


def _cgroup() -> int | None:
    """Returns the smallest limit of the process's control group and those above it."""
    folders: list[Path] = []
    for line in _lines(PROC / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        here = root / path.lstrip("/")
        folders += [here, *(parent for parent in here.parents if parent.is_relative_to(root))]
    limits: list[int] = []
    for folder in folders:
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = "".join(_lines(folder / name)).strip()
            if text.isdigit():  # else "max": none
                limits.append(int(text))
    return min(limits, default=None)


def _status(name: str) -> int:
    for line in _lines(PROC / "self/status"):
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []

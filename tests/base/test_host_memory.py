"""The memory that a process may have: machine, container, `ulimit -v`."""

from pathlib import Path

import numpy as np
import pytest

from gad_jax.base import host_memory
from tests.base.processes import finish, start


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files of a process that holds 2 GiB, in a machine with 5 GiB free."""
    process = tmp_path / "proc/self"
    process.mkdir(parents=True)
    gib = 2**20  # kB
    (process / "status").write_text(f"VmSize:\t{9 * gib} kB\nVmRSS:\t{2 * gib} kB\n")
    (process / "cgroup").write_text("0::/user/job\n")
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {5 * gib} kB\n")
    (tmp_path / "cgroup/user/job").mkdir(parents=True)
    monkeypatch.setattr(host_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host_memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2**34}.get)
    return tmp_path


def test_a_machine_without_limits(linux: Path) -> None:
    (linux / "cgroup/user/job/memory.max").write_text("max\n")
    assert host_memory.limit() == (2**34, "this machine")
    assert host_memory.used() == 2 * 2**30
    assert host_memory.available() == 5 * 2**30


def test_the_smallest_group_above_counts(linux: Path) -> None:
    (linux / "cgroup/user/job/memory.max").write_text(f"{2**33}\n")
    (linux / "cgroup/user/memory.max").write_text(f"{6 * 2**30}\n")
    assert host_memory.limit() == (6 * 2**30, "this container (cgroup)")
    assert host_memory.available() == 4 * 2**30


def test_the_older_groups(linux: Path) -> None:
    (linux / "proc/self/cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/1\n")
    group = linux / "cgroup/memory/docker/1"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("1000000\n")
    assert host_memory.limit().bytes == 1_000_000


def test_a_limit_of_addresses_leaves_what_libraries_have_not_taken() -> None:
    code = (
        "import resource; from gad_jax.base import host_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); most = host_memory.limit()\n"
        "assert 2**30 < most.bytes < 2**31, most\n"
        "assert most.source == '`ulimit -v`'"
    )
    assert finish(start(code)) == (0, "", "")


def test_memory_that_was_freed_is_returned() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    many = [np.ones(25_000) for _ in range(1000)]  # too small for pages of their own
    kept = np.ones(25_000)  # behind them, so that the end of the heap is in use
    largest = resident()
    del many
    host_memory.give_back()
    assert largest - resident() > 100e6
    assert kept.sum() == 25_000

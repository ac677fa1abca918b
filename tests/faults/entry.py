"""Runs `python -m gad_jax.train` and kills it at a chosen point: python entry.py POINT FLAGS...

File operations on the run directory are counted from 1: opening for writing, creating, renaming and
removing, as Python's audit events report them. POINT is one of

    N         kill the process before operation N
    at:REGEX  kill it before the first operation whose 'EVENT PATH' matches
    torn      kill it in the middle of a line of metrics.jsonl
    raise:N   raise an exception at operation N
    stall:N   stop at operation N for ten minutes
    list      print the operations and finish
    none      finish
"""

import os
import re
import signal
import sys
import threading
import time

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}


class Point:
    """Counts the file operations on the run directory, and acts at the chosen one."""

    def __init__(self, run_dir: str, action: str, where: str) -> None:
        self.run_dir, self.action, self.where = os.path.abspath(run_dir), action, where
        self.count, self.lock = 0, threading.Lock()

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | os.PathLike):
            return
        path = _absolute(event, arguments)
        flags = arguments[2] if event == "open" else os.O_WRONLY
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes or not path.startswith(self.run_dir + os.sep):
            return
        with self.lock:
            self.count += 1
            number = self.count
        named = f"{event} {path[len(self.run_dir) + 1 :]}"
        here = re.search(self.where, named) if self.action == "at" else str(number) == self.where
        if here or self.action == "list":
            os.write(2, f"POINT {number} {named}\n".encode())
        if here:
            self.act()

    def act(self) -> None:
        if self.action == "raise":
            raise RuntimeError("planted in a test")
        if self.action == "stall":
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)


def _absolute(event: str, arguments: tuple[object, ...]) -> str:
    """Returns the path. `shutil.rmtree` names files relative to an open directory."""
    path = os.fsdecode(os.fspath(arguments[0]))
    directory = arguments[1] if event in ("os.remove", "os.rmdir") else -1
    if isinstance(directory, int) and directory >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
    return os.path.abspath(path)


def tear_a_row() -> None:
    """Writes a part of the second row of metrics, then kills the process."""
    from gad_jax.training.tracker import Tracker

    log, rows = Tracker.log, []

    def torn(self: Tracker, step: int, stage: str, metrics: dict[str, float]) -> None:
        rows.append(step)
        if len(rows) == 2:
            self._rows.write(f'{{"step": {step}, "stage": "{stage}", "gener'.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        log(self, step, stage, metrics)

    Tracker.log = torn


def cache_in_every_process() -> None:
    """Lets every process write the compilation cache, not only the first.

    On a CPU the keys of a program differ between processes: the others would compile again at every
    start.
    """
    from jax._src import compiler, distributed

    write, state = compiler._cache_write, distributed.global_state

    def write_as_first(*arguments: object) -> None:
        index, state.process_id = state.process_id, 0
        try:
            write(*arguments)
        finally:
            state.process_id = index

    compiler._cache_write = write_as_first


def main() -> int:
    point = sys.argv[1]
    action, _, where = (
        point.rpartition(":") if not point.startswith("at:") else point.partition(":")
    )
    if point == "torn":
        tear_a_row()
    elif point != "none":
        action = action or ("list" if point == "list" else "kill")
        [run_dir] = [a.partition("=")[2] for a in sys.argv if a.startswith("--run_dir=")]
        sys.addaudithook(Point(run_dir, action, where).hook)
    cache_in_every_process()
    from gad_jax import train

    return train.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())

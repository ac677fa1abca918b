"""The process's stderr while a progress bar is shown: whoever writes to it writes above the bar.

Compiled libraries write to file descriptor 2 itself. Such a line would begin behind the bar, and
leave a copy of it in the terminal. A process that is killed loses nothing that it wrote.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable

_POLL_SECONDS = 0.1
_current: "Capture | None" = None


def is_dumb() -> bool:
    """Whether the terminal cannot replace a line that it shows."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


class Capture:
    """Hands on what is written to file descriptor 2, until `close`.

    It goes through a file, which never blocks a writer that holds Python's lock, as a pipe would. A
    second process waits for the end of this one, and then prints what was not handed on.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._rest = show, b""
        self._end = threading.Event()
        with tempfile.NamedTemporaryFile(prefix="gad_jax-stderr-") as file:
            self._reading = os.open(file.name, os.O_RDONLY)
            writing = os.open(file.name, os.O_WRONLY | os.O_APPEND)
        self._real = os.dup(2)
        waiting, self._alive = os.pipe()
        # It shares the place in the file that is read next. Away from the terminal's process
        # group, as Ctrl-C is for this process alone. A shell without arguments of more than a
        # digit: dash knows no other descriptors.
        self._guard = subprocess.Popen(
            ["sh", "-c", "cat <&2 >/dev/null; cat"],
            stdin=self._reading, stdout=self._real, stderr=waiting, start_new_session=True,
        )  # fmt: skip
        os.close(waiting)
        os.dup2(writing, 2)
        os.close(writing)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def restore(self) -> None:
        """Gives stderr back at once, for a signal handler, which may take no lock. What has not
        been handed on is printed when this process ends."""
        os.dup2(self._real, 2)

    def close(self) -> None:
        """Gives stderr back, and hands on the rest."""
        self.restore()
        self._end.set()
        self._thread.join()
        self._hand_on(whole=True)
        os.close(self._alive)
        # All is handed on. Its end is not waited for: a process that was forked may keep the pipe.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()
        os.close(self._reading)
        os.close(self._real)

    def _follow(self) -> None:
        while not self._end.wait(_POLL_SECONDS):
            self._hand_on()

    def _hand_on(self, whole: bool = False) -> None:
        """Shows the lines that have come; `whole` shows the beginning of a line too."""
        while part := os.read(self._reading, 1 << 16):
            self._rest += part
        lines, newline, rest = self._rest.rpartition(b"\n")
        if whole and rest:
            lines, newline, rest = self._rest, b"\n", b""
        self._rest = rest
        if newline:
            with contextlib.suppress(OSError):  # whoever read the output has ended
                self._show(lines.decode(errors="replace"))


def capture(show: Callable[[str], None]) -> None:
    """Has `show` called with the lines that are written to stderr, until `release`.

    Does nothing where stderr is no terminal, or where that is not possible.
    """
    global _current
    if _current is None and os.isatty(2):
        with contextlib.suppress(OSError):
            _current = Capture(show)


def release() -> None:
    """Gives stderr back. Does nothing where it is not captured."""
    global _current
    held, _current = _current, None
    if held is not None:
        held.close()


def restore() -> None:
    """Gives stderr back at once; for signal handlers that end the process."""
    if _current is not None:
        _current.restore()

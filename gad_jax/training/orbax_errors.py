"""Errors of Orbax, known as soon as they happen."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator


class _Silence:
    """What is silenced from the first of several threads that ask for it to the last."""

    def __init__(self) -> None:
        self._lock, self._askers = threading.Lock(), 0
        self._asyncio = logging.getLogger("asyncio")

    def begin(self) -> None:
        with self._lock:
            self._askers += 1
            if self._askers == 1:
                self._before = sys.unraisablehook, self._asyncio.disabled
                sys.unraisablehook, self._asyncio.disabled = lambda _: None, True

    def end(self) -> None:
        with self._lock:
            self._askers -= 1
            if not self._askers:
                sys.unraisablehook, self._asyncio.disabled = self._before


_silence = _Silence()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what Orbax's coroutines and TensorStore's threads print when they fail."""
    _silence.begin()
    try:
        yield
    except Exception:
        time.sleep(0.1)  # TensorStore's threads end after the error is known.
        raise
    finally:
        _silence.end()


class SaveErrors(logging.Handler):
    """The last error of a save, known at once.

    In a run of several processes, Orbax raises the error of a writing thread only after a barrier,
    which the others reach ten minutes later or never. But it logs the error when it happens.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last: BaseException | None = None
        logging.getLogger("absl").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the error of a record of absl's log, which Orbax uses."""
        if record.exc_info and record.exc_info[1] is not None:
            self.last = record.exc_info[1]

    def wait(self, saving: Callable[[], bool]) -> None:
        """Returns when nothing is being saved; raises the error of a save that failed."""
        while saving():
            if self.last is not None:
                raise self.last
            time.sleep(0.01)

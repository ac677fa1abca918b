"""Ends of commands, in real processes: codes, signals, the watchdog."""

import gc
import signal
import subprocess
import time

import pytest

from gad_jax.base import exits
from tests.base.processes import finish, start

GUARDED = """
import sys, threading, time
from gad_jax.base.errors import *
from gad_jax.base.exits import run_guarded
def main():
    # A thread that an ordinary exit would wait for, as Orbax has them.
    threading.Thread(target=time.sleep, args=(600,)).start()
    print("a line in the buffer")
    BODY
sys.exit(run_guarded(main))
"""


@pytest.mark.parametrize(
    ("body", "code", "last_line"),
    [
        ("raise UserError('batch=7 does not split')", 2, "batch=7 does not split"),
        ("raise NumericsError('10 steps skipped')", 10, "10 steps skipped"),
        ("raise CollapseError('too long')", 11, "too long"),
        ("raise StorageError('disk')", 12, "disk"),
        (
            "raise OSError(28, 'No space left', 'f.jsonl')",
            12,
            "f.jsonl could not be read or written: ",
        ),
        ("raise OSError(2, 'No such file', 'x')", 13, "FileNotFoundError: [Errno 2] No such file"),
        ("raise OutOfMemoryError('8 GB failed')", 15, "8 GB failed"),
        ("raise MemoryError", 15, "out of memory: an allocation failed; "),
        ("raise ValueError('surprise')", 13, "ValueError: surprise"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("raise ImportError('half a module') from KeyboardInterrupt()", 130, "interrupted"),
        (
            # Once: the first callback is that of the start of a collection. A job in a script's
            # background ignores Ctrl-C unless it says otherwise.
            "import gc, signal; signal.signal(2, signal.default_int_handler); "
            "gc.callbacks.append(lambda phase, _: phase == 'start' and "
            "(gc.disable() or signal.raise_signal(2))); gc.collect()",
            130,
            "interrupted",
        ),
    ],
)
def test_exit_codes(body: str, code: int, last_line: str) -> None:
    found, out, err = finish(start(GUARDED.replace("BODY", body)))
    assert found == code
    assert out == "a line in the buffer\n"
    assert err.splitlines()[-1].startswith(last_line)
    assert ("Traceback" in err) == (code == 13)


def test_a_reader_who_leaves_ends_it_in_one_line() -> None:
    process = start(GUARDED.replace("BODY", "while True: print('more', flush=True)"))
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(120) == 141
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == "stopped: whatever read the output has ended\n"


def test_success_and_argparse_pass_through() -> None:
    quick = GUARDED.replace("args=(600,)", "args=(0,)")
    assert finish(start(quick.replace("BODY", "return 0")))[0] == 0
    assert finish(start(quick.replace("BODY", "raise SystemExit(2)")))[0] == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((700, 10, 10), exits.SELDOM),
        ((0, 10, 10), (0, 10, 10)),  # switched off
        ((100_000, 20, 100), (100_000, 20, 100)),
    ],
)
def test_garbage_is_looked_for_less_often(
    before: tuple[int, int, int], after: tuple[int, int, int]
) -> None:
    own = gc.get_threshold()
    try:
        gc.set_threshold(*before)
        assert exits.run_guarded(lambda: 3) == 3
        assert gc.get_threshold() == after
    finally:
        gc.set_threshold(*own)


@pytest.mark.parametrize(("own", "found"), [("", "1"), ("3", "3")])
def test_numpy_has_one_thread_unless_it_was_given_some(
    own: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", own)
    code = GUARDED.replace("args=(600,)", "args=(0,)").replace(
        "BODY", "import os; os.write(2, os.environ['OPENBLAS_NUM_THREADS'].encode()); return 0"
    )
    assert finish(start(code))[::2] == (0, found)
    code = "import sys, gad_jax.train, gad_jax.evaluate.__main__; sys.exit('numpy' in sys.modules)"
    assert finish(start(code))[0] == 0


def test_imports_no_jax() -> None:
    code = "import sys, gad_jax.base.exits; sys.exit('jax' in sys.modules)"
    assert finish(start(code))[0] == 0


LOOP = """
import sys, time
from gad_jax.base.exits import StopRequest
with StopRequest() as stop:
    print("running", flush=True)
    if sys.argv[1] == "before":
        time.sleep(600)
    stop.ready = True
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(float(sys.argv[2]))
    print("saved", flush=True)
"""


def start_loop(when: str, save_seconds: float, until: str) -> subprocess.Popen[str]:
    process = start(LOOP, when, str(save_seconds))
    assert process.stdout is not None
    while process.stdout.readline().strip() != until:
        pass
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_step_ends_at_once(number: int, code: int) -> None:
    process = start_loop("before", 0, "running")
    begin = time.monotonic()
    process.send_signal(number)
    found, out, err = finish(process)
    assert (found, out) == (code, "")
    assert "nothing was saved" in err
    assert time.monotonic() - begin < 100  # it would run for 600


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_and_its_save_finish(number: int) -> None:
    process = start_loop("after", 0, "ready")
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, out) == (0, "saving\nsaved\n")
    assert err == "stopping after this step; press Ctrl-C again to stop at once\n"


def test_a_second_interrupt_ends_at_once() -> None:
    process = start_loop("after", 600, "ready")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGINT)
    code, out, _ = finish(process)
    assert (code, out) == (130, "")


def test_a_second_termination_does_not_cut_the_save() -> None:
    process = start_loop("after", 0.3, "ready")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert (code, out) == (0, "saved\n")
    assert err.count("stopping") == 1


STALL = """
import time
from gad_jax.base.exits import watchdog
def stalled_line():
    time.sleep(600)
for _ in range(4):
    watchdog(4)
    time.sleep(1.1)
watchdog(0)
time.sleep(4.1)
print("still here", flush=True)
watchdog(1.5)
stalled_line()
"""


def test_the_watchdog_names_the_line_that_hangs() -> None:
    code, out, err = finish(start(STALL))
    assert (code, out) == (1, "still here\n")
    assert "in stalled_line" in err

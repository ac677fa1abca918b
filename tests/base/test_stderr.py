"""What others write to stderr while a bar is shown."""

import os
import pty
import subprocess
import sys

BEGIN = """
import os, signal, sys, time
from gad_jax.base import stderr
shown = []
stderr.capture(shown.append)
"""
TAKEN = """
os.write(2, b"one\\ntwo\\nhal")
for _ in range(6000):
    if shown:
        break
    time.sleep(0.01)
assert shown == ["one\\ntwo"], shown
os.write(2, b"f")
stderr.release()
stderr.release()
assert shown == ["one\\ntwo", "half"], shown
os.write(2, b"after")
"""
KILLED = """
os.write(2, b"a last word\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""
STOPPED = """
stderr.restore()
os.write(2, b"stopped\\n")
os._exit(3)
"""

FORKED = """
waiting, go = os.pipe()
child = os.fork()
if not child:
    os.close(go)
    os.read(waiting, 1)
    os._exit(0)
stderr.release()  # the child has the pipe of its guard
os.close(go)
os.waitpid(child, 0)
"""


def in_terminal(code: str) -> tuple[int, str]:
    """Returns the exit code of a program, and what its terminal has once all writers ended."""
    master, slave = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=slave, stderr=slave, check=False)
    os.close(slave)
    text = b""
    try:
        while part := os.read(master, 1 << 16):
            text += part
    except OSError:  # Linux says so that nobody has the terminal open any more
        pass
    os.close(master)
    return done.returncode, text.decode()


def test_lines_are_handed_on_whole_until_the_end() -> None:
    assert in_terminal(BEGIN + TAKEN) == (0, "after")


def test_a_forked_process_does_not_hold_up_the_end() -> None:
    assert in_terminal(BEGIN + FORKED) == (0, "")


def test_a_process_that_is_killed_loses_nothing() -> None:
    assert in_terminal(BEGIN + KILLED) == (-9, "a last word\r\n")


def test_a_signal_handler_gives_stderr_back_at_once() -> None:
    assert in_terminal(BEGIN + STOPPED) == (3, "stopped\r\n")


def test_a_file_is_left_alone() -> None:
    code = f"{BEGIN}os.write(2, b'one'); stderr.restore(); stderr.release(); assert not shown"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b"one"

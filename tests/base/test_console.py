"""Lines, bars and tables, in files and in terminals."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from gad_jax.base import verbosity
from gad_jax.base.console import Display, LogHandler, Note, printable
from tests.base.test_step_line import STEP


def plain(width: int = 100) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


IN_TERMINAL = """
import logging, os, sys, threading
from gad_jax.base import console
from gad_jax.base.console import Display, LogHandler
taken, capture = threading.Event(), console.stderr.capture
console.stderr.capture = lambda show: capture(lambda text: (show(text), taken.set()))
logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogHandler()])
display = Display()
display.start(0, 4)
with display.busy("evaluating: before"):
    pass
display.compiling()
display.step(1, "gad", {"generator/loss": 0.5, "seconds/step": 60.0})
print("a line of another part")
logging.info("a log of another part")
os.write(2, b"a library\\nof two lines\\n")
if os.environ["TERM"] != "dumb":  # which has no bar, so it is written as it is
    taken.wait(60)
step = {"reward/mean": 0.5, "response/length_ratio": 1.0, "discriminator/accuracy": 0.5}
step |= {"generator/loss": 0.5, "seconds/step": 60.0, "response/cut_share": 0.5}
step |= {"kl/reference": 0.1, "discriminator/loss": 0.7, "reward/std": 1.0}
step |= {"generator/gradient_norm": 1.0, "tokens_per_second/rollout": 1e4, "margin": 1.0}
display.step(2, "gad", step)
display.close()
display.compiling()
"""


@pytest.fixture
def chosen() -> Iterator[Callable[..., None]]:
    """Chooses --quiet or --verbose for the length of a test."""
    yield lambda *flags: verbosity.choose(flags)
    verbosity.choose([])


def test_a_line_of_a_file_has_what_fits_80_columns(chosen: Callable[..., None]) -> None:
    console = plain()
    display = Display(console)
    display.start(10, 400)
    display.step(11, "gad", STEP)
    display.step(12, "seqkd", {"generator/loss": 2.5})
    chosen("--verbose")
    display.step(11, "gad", STEP)
    chosen("--quiet")
    display.step(12, "gad", STEP)
    display.compiling()
    with display.busy("evaluating"):
        display.notice("a warning")
    first, second, third, fourth = shown(console).splitlines()
    numbers = "reward -0.12  0.95× teacher  D acc 0.62  12.3 s"
    assert first == f"step 11/400  gad  {numbers}  left 1:20:00"
    assert second == "step 12/400  seqkd  G loss 2.5000  left –"
    assert third == (
        "step 11/400  gad  G loss 0.0123  D loss 0.6451  D accuracy 0.62  margin +0.31  "
        "reward -0.12 ± 0.80  length 214  0.95× teacher  cut 6%  KL 0.0031  G grad 0.183  "
        "D grad 12.5  3,210 sampled tokens/s  12.3 s/step  left 1:20:00"
    )
    assert fourth == "a warning"


def test_the_time_left_is_that_of_the_stage() -> None:
    console = plain()
    display = Display(console)
    display.start(0, 10)
    for step, stage, seconds in [(1, "warmup", 100.0), (2, "warmup", 50.0), (3, "gad", 7.0)]:
        display.step(step, stage, {"seconds/step": seconds})
    lefts = [line.split("left ")[1] for line in shown(console).splitlines()]
    assert lefts == ["0:15:00", "0:10:00", "0:00:49"]


def test_steps_that_compile_say_so_and_do_not_count_for_the_time_left() -> None:
    console = plain()
    display = Display(console)
    display.start(0, 10)
    display.compiling()
    display.compiling()
    display.step(1, "gad", {"seconds/step": 100.0, "compiles": 7.0})
    display.step(2, "gad", {"seconds/step": 5.0, "compiles": 0.0})
    display.compiling()
    with display.busy("evaluating"):
        display.compiling()
    display.step(3, "gad", {"seconds/step": 90.0, "compiles": 1.0, "seconds/compile": 80.0})
    display.step(10, "gad", {"seconds/step": 5.0})
    display.compiling()  # of the export
    assert shown(console).splitlines() == [
        *("step 1/10  compiling", "step 1/10  gad  100.0 s/step  left –"),
        *("step 2/10  gad  5.0 s/step  left 0:00:40", "step 3/10  compiling", "evaluating"),
        *("step 3/10  gad  90.0 s/step  left 0:00:35", "step 10/10  gad  5.0 s/step  left 0:00:00"),
    ]


def test_the_time_left_comes_from_steps_that_compile_where_there_are_no_others() -> None:
    console = plain()
    display = Display(console)
    display.start(0, 10)
    for step, compiling in ((1, 50.0), (2, 53.0)):
        metrics = {"seconds/step": 60.0, "seconds/compile": compiling, "compiles": 2.0}
        display.step(step, "gad", metrics)
    display.step(3, "gad", {"seconds/step": 5.0})
    lefts = [line.split("left ")[1] for line in shown(console).splitlines()]
    assert lefts == ["0:01:30", "0:01:08", "0:00:35"]


def test_a_log_goes_to_what_stderr_is_then(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, stream = LogHandler(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    handler.emit(logging.makeLogRecord({"msg": "a warning"}))
    assert stream.getvalue() == "a warning\n"


def in_terminal(code: str, **variables: str) -> str:
    """Returns what a program writes to a terminal of 80 columns, to stdout and stderr."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    environment |= variables
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=environment, stdout=slave, stderr=slave, check=True)
    os.close(slave)
    text = os.read(master, 1 << 16).decode()
    os.close(master)
    return text


def test_a_terminal_has_a_bar_and_keeps_its_cursor() -> None:
    text = in_terminal(IN_TERMINAL)
    assert "evaluating: before" in text
    assert "G loss 0.5000" in text
    assert "1/4" in text
    assert "0:03:00 left" in text
    assert "a line of another part" in text
    assert "step 1: compiling" in text
    assert "\x1b[?25l" not in text
    left = scrollback(text)
    assert [line[:8] for line in left] == [
        *("step 1/4", "a line o", "a log of", "a librar", "of two l", "step 2/4"),
    ]
    assert "━" not in "".join(left)  # no bar that nothing moves any more
    assert max(map(len, left)) <= 80


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines() -> None:
    text = in_terminal(IN_TERMINAL, TERM="dumb")
    assert "\x1b" not in text
    assert text.splitlines()[0] == "evaluating: before"
    assert "a library" in text
    assert "step 2/4  gad  reward +0.50" in text


def test_without_colour_there_is_none() -> None:
    text = in_terminal(IN_TERMINAL, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", text)
    assert "━" in text


def scrollback(text: str) -> list[str]:
    """Returns the lines that a terminal has at the end, without those that are blank."""
    lines, row, column = [""], 0, 0
    for code, letter in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z])|(.)", text, re.DOTALL):
        if code.endswith("K"):
            lines[row] = lines[row][:column] if code in ("\x1b[K", "\x1b[0K") else ""
        elif code.endswith("A"):
            row -= int(code[2:-1] or 1)
        elif letter == "\r":
            column = 0
        elif letter == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif letter:
            line = lines[row].ljust(column)
            lines[row], column = line[:column] + letter + line[column + 1 :], column + 1
    return [line.rstrip() for line in lines if line.strip()]


def test_tables_and_answers_fit_the_width() -> None:
    for width in (80, 120):
        console = plain(width)
        display = Display(console)
        rows = {
            "before": {"ROUGE-L": 0.1234567, "tokens": 312.4, "× teacher": 1.61},
            "after warmup": {"ROUGE-L": 0.2, "tokens": 150.0, "× teacher": 0.98},
        }
        display.table("held-out prompts", rows)
        answers = {"teacher": "short", "before": "word " * 400, "after gad": "x" * 500}
        display.side_by_side("Why is the sky blue?", answers)
        lines = shown(console).splitlines()
        assert max(map(len, lines)) <= width
        assert any("0.123" in line and "312" in line and "1.61" in line for line in lines)
        assert "… (799 more characters)" in " ".join(shown(console).split())
        side_by_side = any("teacher" in line and "after gad" in line for line in lines)
        assert side_by_side == (width == 120)


def test_columns_that_do_not_fit_follow_in_another_table() -> None:
    console = plain(40)
    row: dict[str, float | str] = {f"quantity {n}": float(n) for n in range(5)}
    Display(console).table("all of them", {"the first row": row, "b": {"quantity 4": "x"}})
    lines = shown(console).splitlines()
    assert max(map(len, lines)) <= 40
    heads = [line for line in lines if "quantity" in line]
    assert [head.count("quantity") for head in heads] == [1, 1, 1, 1, 1]
    assert sum("the first row" in line for line in lines) == 5
    assert sum("all of them" in line for line in lines) == 1
    wide = plain(200)
    Display(wide).table("all of them", {"the first row": row})
    assert sum("quantity 0" in line and "quantity 4" in line for line in shown(wide).splitlines())


def test_text_of_a_model_cannot_drive_the_terminal() -> None:
    hostile = "a\x1b[31mb\x07\rc\u202ed\ud800 [bold]e[/bold]\n\tf"
    assert printable(hostile) == "a\ufffd[31mb\ufffd\ufffdc\ufffdd\ufffd [bold]e[/bold]\n\tf"
    console = plain()
    Display(console).side_by_side(hostile, {"teacher": hostile})
    assert "[bold]e[/bold]" in shown(console)
    assert "\x1b" not in shown(console)


def test_without_a_terminal_progress_is_a_line_from_time_to_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console = plain()
    display = Display(console, line_seconds=10.0)
    display.start(0, 7)
    for now[0], done in ((109.0, 1), (110.0, 2), (119.0, 3), (121.0, 4)):
        display.progress(done, "[note]")
    assert shown(console).splitlines() == ["2 of 7  [note]", "4 of 7  [note]"]


PROGRESS = """
from gad_jax.base.console import Display
display = Display(line_seconds=1000)
display.start(0, 7)
display.progress(3, "12 tokens")
display.close()
"""


def test_in_a_terminal_progress_is_a_bar() -> None:
    text = in_terminal(PROGRESS)
    assert "3/7" in text
    assert "12 tokens" in text
    assert "\x1b[?25l" not in text


def test_a_note_is_replaced_in_a_terminal_and_a_line_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (f"compiling {number} of 2 programs" for number in (1, 2))
    for terminal, expected in (
        (True, f"\r\x1b[K{first}\r\x1b[K{second}\r\x1b[K"),
        (False, f"{first}\n{second}\n"),
    ):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setenv("TERM", "xterm")
        note = Note()
        note.clear()  # nothing is shown yet
        note.compiling(1, 2)
        note.compiling(2, 2)
        note.clear()
        note.clear()
        assert capsys.readouterr().out == expected

"""A conversation at a terminal: it streams, keeps what was said, and can be stopped."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gad_jax.base.redaction import printable
from gad_jax.data.chat import Chat
from gad_jax.generate import __main__ as generate
from gad_jax.generate.conversation import GrowingText
from gad_jax.models.builtin import tiny
from tests import compiling

pytest_plugins = ["tests.run_fixtures"]

CLEAR = "\r\x1b[K"
ROOT = Path(__file__).parents[2]


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gad_jax.generate", *map(str, arguments)],
            env=os.environ
            | {"XLA_FLAGS": compiling.XLA_FLAGS, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, pattern: str) -> str:
        """Returns what is shown up to a pattern."""
        read, end = b"", time.monotonic() + 600
        while not re.search(pattern, shown := read.decode(errors="replace")):
            left = end - time.monotonic()
            ready = select.select([self.master], [], [], max(left, 0))[0]
            assert ready, f"{pattern!r} did not appear in {shown!r}"
            read += os.read(self.master, 1)
        return shown.replace("\r\n", "\n")

    def answer(self, line: str) -> str:
        """Returns the answer to a line."""
        self.type(f"{line}\n")
        shown = self.until(r"\n> $")
        lines = shown.split("\n")[1:-1]
        return "\n".join(line.rsplit(CLEAR, 1)[-1] for line in lines).strip()


@pytest.fixture
def terminal(tiny_run: Path) -> Iterator[Terminal]:
    one = Terminal("--model", tiny_run, "--max_new_tokens=600")
    yield one
    one.process.kill()
    one.process.wait()
    os.close(one.master)


def test_a_conversation(
    terminal: Terminal, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opening = terminal.until(r"\n> $")
    assert opening.index("loading ") < opening.index("compiling") < opening.index("step 2 (gad)")
    assert "/new starts another conversation" in opening
    first = terminal.answer("Name a fruit.")
    flags = ("--model", str(tiny_run), "--max_new_tokens=8")
    assert generate.main([*flags, "--prompt=Name a fruit."]) == 0
    alone = printable(capsys.readouterr().out.strip())
    assert first.startswith(alone)
    second = terminal.answer("Name a fruit.")
    assert second != first  # the conversation went on
    assert "is unknown" in terminal.answer("/old")
    assert terminal.answer("/new").startswith("a new conversation")
    assert terminal.answer("Name a fruit.") == first
    terminal.type("Name a fruit.\n")
    terminal.until("Name a fruit.\r\n")
    terminal.until(r"K[^\r\x1b…]{9}")  # text, long before the end
    terminal.process.send_signal(signal.SIGINT)
    cut = terminal.until(r"\n> $")
    assert "[stopped]" in cut
    assert "[cut at" not in cut
    too_long = terminal.answer("word " * 800)
    assert "fit next to --max_new_tokens=600; /new starts another" in too_long
    terminal.type("/quit\n")
    assert terminal.process.wait(timeout=600) == 0


def test_text_grows_by_whole_characters_and_thoughts_are_apart() -> None:
    chat = Chat.load(tiny.fetch(), "none")
    text = "<think>two, né</think>\n\n– four 👍  "
    tokens = chat.tokenizer.encode(text, add_special_tokens=False)
    growing = GrowingText(chat)
    parts = [growing.push(token) for token in [*tokens, chat.end_token]]
    parts.append(growing.end())
    whole = chat.reply([*tokens, chat.end_token])
    assert "".join(part.thoughts for part in parts) == whole.thoughts == "two, né"
    assert "".join(part.answer for part in parts) == whole.answer
    assert sum(bool(part.answer) for part in parts) > 5
    assert not any("\ufffd" in part.answer + part.thoughts for part in parts)

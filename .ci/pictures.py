"""Makes the README's pictures of a run anew: what its terminal shows, and the top of its report.

    python .ci/pictures.py RUN [FLAGS of gad_jax.train]

Trains into RUN in a terminal of 80 columns, unless RUN/terminal.txt is there from the last time.
Writes docs/pictures/console.svg and docs/pictures/report.png. Needs chromium, and Linux or macOS.
"""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 80
LINES = {"step 1/": 4, "held-out prompts": 38, "the report is": 9}
"""Lines that are shown from the first one that begins so; "…" stands for those between them."""

REPORT = (1180, 1640)
"""Pixels of the page that are shown."""


def main() -> None:
    """Makes both pictures."""
    run, *flags = sys.argv[1:]
    recorded = Path(run) / "terminal.txt"
    command = ["python", "-m", "gad_jax.train", *flags]
    if not recorded.is_file():
        output = in_terminal([sys.executable, *command[1:], f"--run_dir={run}"])
        recorded.write_bytes(output)
    lines = last_lines(recorded.read_bytes().decode())
    (PICTURES / "console.svg").write_text(console(" ".join(command), lines))
    report(Path(run) / "report.html", PICTURES / "report.png")
    for name in ("console.svg", "report.png"):
        print(PICTURES / name, (PICTURES / name).stat().st_size // 1000, "kB")


def in_terminal(command: list[str]) -> bytes:
    """Returns all that a command writes to a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    child = subprocess.Popen(command, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    output = io.BytesIO()
    try:
        while part := os.read(master, 1 << 16):
            output.write(part)
    except OSError:  # Linux says so that the other end is closed
        pass
    os.close(master)
    if child.wait():
        sys.exit(f"{' '.join(command)} ended with exit code {child.returncode}")
    return output.getvalue()


def last_lines(text: str) -> list[str]:
    """Returns the lines that a terminal has at the end, with their colours: no bar is left."""
    lines: list[str] = []
    for line in text.replace("\r", "").split("\n"):
        for _ in re.findall(r"\x1b\[\d*A", line):
            lines = lines[:-1]
        lines.append(re.split(r"\x1b\[\d*[AK]", line)[-1])
    return [line for line in lines if line.strip()]


def console(command: str, lines: list[str]) -> str:
    """Returns the terminal as SVG, without the fonts that it would load from elsewhere."""
    plain = [Text.from_ansi(line).plain for line in lines]
    shown: list[str] = []
    end = 0
    for beginning, count in LINES.items():
        begin = next(n for n, line in enumerate(plain) if line.startswith(beginning))
        shown += ["…"] if begin > end else []
        shown, end = [*shown, *lines[max(begin, end) : begin + count]], begin + count
    recorder = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    recorder.print(Text(f"$ {command}", style="bold"))
    for line in shown:
        recorder.print(Text.from_ansi(line), soft_wrap=False)
    svg = recorder.export_svg(title="gad_jax", theme=MONOKAI, unique_id="console")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


def report(page: Path, picture: Path) -> None:
    """Writes the top of a page as a picture with few colours."""
    width, height = REPORT
    with tempfile.TemporaryDirectory() as directory:
        shot = Path(directory) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += ["--disable-background-networking", f"--user-data-dir={directory}/profile"]
        flags += [f"--window-size={width},{height}", f"--screenshot={shot}"]
        done = subprocess.run(["chromium", *flags, page.resolve().as_uri()], capture_output=True)
        if not shot.is_file():
            sys.exit(done.stderr.decode(errors="replace"))
        Image.open(shot).convert("RGB").quantize(192).save(picture, optimize=True)


if __name__ == "__main__":
    main()

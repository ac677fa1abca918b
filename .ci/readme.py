"""Extracts the commands of README.md, so that what it says is what CI runs.

A comment stands before each ```bash block: `<!-- ci: TAG -->`, or `<!-- ci: skip REASON -->` for a
block that CI cannot run. The blocks of a tag run in their order; those with `apart` need nothing of
the others, and CI runs them at the same time. A shell block without a tag is an error: it would be
a promise that nobody checks.

    python .ci/readme.py README.md check           what will run and what will not
    python .ci/readme.py README.md print TAG       the commands of the blocks with this tag
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

TAGS = ("install", "test", "run", "apart")
SHELLS = ("bash", "sh", "shell", "console", "zsh")


@dataclass(frozen=True)
class Block:
    """Commands of the README; `reason` says why a skipped block is skipped."""

    line: int
    tag: str
    reason: str
    commands: str


def blocks(text: str) -> list[Block]:
    """The shell blocks of a Markdown text, in order. Raises ValueError at a block without a tag."""
    found: list[Block] = []
    fence = mark = ""  # the fence that is open, and the last comment before it
    start, lines = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        opening = re.match(r"\s*(`{3,}|~{3,})\s*(\w*)", line)
        if fence:
            if line.strip() == fence:
                if lines[0] in SHELLS:
                    found.append(_block(start, mark, "\n".join(lines[1:])))
                fence = mark = ""
            else:
                lines.append(line)
        elif opening:
            fence, start, lines = opening[1], number, [opening[2]]
        elif line.strip():
            comment = re.fullmatch(r"\s*<!--\s*ci:\s*(.*?)\s*-->\s*", line)
            mark = comment[1] if comment else ""
    if fence:
        raise ValueError(f"line {start}: the block is never closed")
    return found


def _block(line: int, mark: str, commands: str) -> Block:
    tag, _, reason = mark.partition(" ")
    if tag in TAGS if not reason else tag == "skip":
        return Block(line, tag, reason, commands)
    problem = f"{mark!r} is not understood" if mark else "no comment says what CI does with it"
    raise ValueError(
        f"line {line}: {problem}; write <!-- ci: {'|'.join(TAGS)} --> or <!-- ci: skip REASON --> "
        "above the block"
    )


def main(file: str, action: str, tag: str = "") -> int:
    """Does what the module's docstring says; returns the exit code."""
    try:
        found = blocks(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"{file}, {error}", file=sys.stderr)
        return 1
    if action == "check":
        missing = [tag for tag in TAGS if tag not in {block.tag for block in found}]
        for block in found:
            what = f"not run: {block.reason}" if block.tag == "skip" else block.tag
            print(f"{file}:{block.line}: {what}")
        if missing:
            print(f"{file}: no block is tagged {' or '.join(missing)}", file=sys.stderr)
        return 1 if missing else 0
    print("\n".join(block.commands for block in found if block.tag == tag))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

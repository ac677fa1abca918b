"""Plain text: a prompt per line, UTF-8. For prompts only: it has no responses."""

from collections.abc import Iterator
from pathlib import Path

from gad_jax.data.sources import jsonl, opening
from gad_jax.data.sources.rows import Invalid, Record


def records(path: Path) -> Iterator[Record]:
    """Yields (file:line, {"prompt": the line}) for each line that is not blank."""
    with opening.stream(path) as file:
        for number, line in jsonl.numbered(path, file.readline):
            where = f"{path.name}:{number}"
            if isinstance(line, Invalid):
                yield where, line
                continue
            try:
                text = line.rstrip(b"\r\n").decode()
            except UnicodeDecodeError as error:
                yield where, Invalid("not UTF-8", f" at byte {error.start + 1}")
                continue
            if text.strip():  # not only blanks of other scripts
                yield where, {"prompt": text}

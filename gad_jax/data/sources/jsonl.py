"""JSON Lines: one object per line, UTF-8.

Lines end at a line feed only: U+2028 and its like may stand inside a string.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.data.sources import opening
from gad_jax.data.sources.rows import Invalid, Record

MAX_LINE_BYTES = 16 * 2**20
MAX_BLANK_LINES = 100_000
_BOM = b"\xef\xbb\xbf"


def records(path: Path) -> Iterator[Record]:
    """Yields (file:line, object) for each line that is not blank; never holds more than a line."""
    with opening.stream(path) as file:
        for number, line in numbered(path, file.readline):
            yield f"{path.name}:{number}", _parse(line)


def numbered(path: Path, readline: Callable[[int], bytes]) -> Iterator[tuple[int, bytes | Invalid]]:
    """Yields the lines that are not blank, and their numbers.

    Raises UserError for endless blank lines, of which a small compressed file may have billions.
    """
    blank = 0
    for number, line in enumerate(lines(readline), start=1):
        if isinstance(line, Invalid) or line.strip():
            blank = 0
            yield number, line
        elif (blank := blank + 1) > MAX_BLANK_LINES:
            raise UserError(
                f"{path}: more than {MAX_BLANK_LINES} blank lines in a row; check the file"
            )


def lines(readline: Callable[[int], bytes]) -> Iterator[bytes | Invalid]:
    """Yields the lines of a file, Invalid for those beyond the limit; holds no more than that."""
    first = True
    while line := readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = readline(MAX_LINE_BYTES)
            yield Invalid(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
        else:
            yield line.removeprefix(_BOM) if first else line
        first = False


def _parse(line: bytes | Invalid) -> Any:
    """Returns the object on a line, or Invalid."""
    if isinstance(line, Invalid):
        return line
    try:
        return json.loads(line.rstrip(b"\r\n").decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return Invalid("not UTF-8", f" at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return Invalid("not JSON", f" ({error.msg}, column {error.colno})")
    except RecursionError:
        return Invalid("not JSON", " (nested too deeply)")
    except ValueError:  # of int(): thousands of digits
        return Invalid("not JSON", " (a number has too many digits)")
    except Invalid as error:
        return error


def _refuse_constant(constant: str) -> None:
    raise Invalid("not JSON", f" ({constant} is not a JSON value)")

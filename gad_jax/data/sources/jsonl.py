"""JSON Lines, plain or gzipped: one object per line, UTF-8.

Lines end at a line feed only: U+2028 and its like may stand inside a string.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.data.sources.rows import Invalid, Record

MAX_LINE_BYTES = 16 * 2**20
_BOM = b"\xef\xbb\xbf"


def records(path: Path) -> Iterator[Record]:
    """Yields (file:line, object) for each line that is not blank; never holds more than a line."""
    compressed = path.name.endswith(".gz")
    try:
        with gzip.open(path) if compressed else open(path, "rb") as file:
            for number, line in enumerate(lines(file.readline), start=1):
                if isinstance(line, Invalid) or line.strip():
                    yield f"{path.name}:{number}", _parse(line)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); download it again") from error


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

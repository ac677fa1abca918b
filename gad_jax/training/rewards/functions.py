"""A user's own function as a term of the reward: finding it, calling it, checking what it returns.

A function names what it wants to see by its parameters: some fields of `rules.Row`, of one response
at a time; or a single parameter `rows` for all responses of the step, as a list of `Row`.
"""

import importlib
import importlib.util
import inspect
import math
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence, Set, ValuesView
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from gad_jax.base.errors import UserError, first_line
from gad_jax.settings.fields import did_you_mean, show
from gad_jax.settings.reward import is_file
from gad_jax.training.rewards.rules import Row

_FLAG = "--reward.extra"
_IMPORTED: dict[str, str] = {}  # of modules, what identified them when they were imported here
RESUMES = "the same command resumes, with --checkpoint.accept_new_code if steps were saved"
"""What follows after a user's code was corrected."""


def load(given: str, source: str) -> tuple[Callable[..., Any], list[Path], str]:
    """Returns the function FILE.py:FUNCTION or MODULE:FUNCTION, its files and what identifies them:
    a sha256, or the module's name where there is no file. Raises UserError, led by `given`."""
    place, _, name = source.rpartition(":")
    module, files = _from_file(given, place) if is_file(place) else _module(given, place)
    return _named(given, module, name), files, _identity(files, place)


class Function:
    """A function that was loaded: `source` is as it was given, `identity` hashes its file."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.function, self.files, self.identity = load(f"{_FLAG}={source}", source)
        self.whole = _takes_rows(source, self.function)

    def __call__(self, rows: Sequence[Row], timeout: float) -> list[float]:
        """Returns the value of each response; one that is no number is an error, NaN and inf are
        not. Raises UserError that names the response, or says which call takes longer than
        `timeout` seconds."""
        call = _Call(self, rows)
        worker = threading.Thread(target=call.run, daemon=True)  # one that hangs ends with us
        worker.start()
        while worker.is_alive():
            began = call.began
            worker.join(max(began + timeout - time.monotonic(), 0.01))
            if worker.is_alive() and call.began == began < time.monotonic() - timeout:
                raise UserError(
                    f"{_FLAG}={self.source} has not returned after {show(timeout)} s for "
                    f"{call.place}; make it faster, or raise --reward.timeout"
                )
        if call.error is not None:
            raise UserError(self._failed(call.error, call.place)) from call.error
        return self._checked(call, rows)

    def _failed(self, error: BaseException, place: str) -> str:
        return (
            f"{_FLAG}={self.source} raised {where_raised(error, self.files)}, for {place}; "
            f"correct it, and {RESUMES}"
        )

    def _checked(self, call: "_Call", rows: Sequence[Row]) -> list[float]:
        found = call.returned
        if self.whole:
            unordered = isinstance(found, (Set, ValuesView))  # also the views of a dict
            sized = hasattr(found, "__len__") and getattr(found, "ndim", 1) != 0
            size = len(found) if sized and not unordered else None
            if size != len(rows) or isinstance(found, (str, bytes, dict)):
                got = type(found).__name__ if size is None else f"{size} values"
                raise UserError(
                    f"{_FLAG}={self.source} returned {got} for {len(rows)} rows; return a list "
                    "with a number for each"
                )
        numbers = [_number(value) for value in found]
        for row, value, number in zip(rows, found, numbers, strict=True):
            if number is None:
                raise UserError(
                    f"{_FLAG}={self.source} returned {_shown(value)} for {row.place}; return a "
                    "number, or nan for a response that is not to count"
                )
        return [math.nan if number is None else number for number in numbers]


class _Call:
    """One call for all rows, in a thread of its own; `began` is when the last one of them did."""

    def __init__(self, function: Function, rows: Sequence[Row]) -> None:
        self.function, self.rows = function, rows
        self.began = time.monotonic()
        self.place = f"{len(rows)} rows"
        self.returned: Any = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Calls the function, and keeps what it returns or raises."""
        call = self.function.function
        try:
            if self.function.whole:
                rows = list(self.rows)
                self.returned = call(rows=rows) if _by_name(call) else call(rows)
                return
            wanted = _wanted(call)
            for row in self.rows:
                self.place, self.began = row.place, time.monotonic()
                self.returned.append(_one(call, wanted, row))
        except BaseException as error:  # SystemExit would end this thread alone
            self.error = error


def _one(call: Callable[..., Any], wanted: dict[str, bool], row: Row) -> Any:
    by_place = [getattr(row, name) for name, named in wanted.items() if not named]
    by_name = {name: getattr(row, name) for name, named in wanted.items() if named}
    return call(*by_place, **by_name)


def _wanted(call: Callable[..., Any]) -> dict[str, bool]:
    """Returns the fields of a row that a function takes, and whether it takes them by name."""
    parameters = inspect.signature(call).parameters.values()
    known = {
        one.name: one.kind is not one.POSITIONAL_ONLY
        for one in parameters
        if one.name in Row._fields
    }
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return dict.fromkeys(Row._fields, True) | known if takes_all else known


def _by_name(call: Callable[..., Any]) -> bool:
    """Returns whether a function of all rows takes them by name alone."""
    rows = inspect.signature(call).parameters["rows"]
    return rows.kind is rows.KEYWORD_ONLY


def _takes_rows(source: str, function: Callable[..., Any]) -> bool:
    """Returns whether a function takes all rows at once. Raises UserError for parameters that
    nothing is known for."""
    names = ", ".join(Row._fields)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise UserError(
            f"{_FLAG}={source} does not say its parameters; wrap it in a function of some of "
            f"{names}"
        ) from None
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise UserError(f"{_FLAG}={source} is async or a generator; give a plain function")
    needed = [
        one.name
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if needed == ["rows"]:
        return True
    unknown = [name for name in needed if name not in Row._fields]
    if unknown:
        raise UserError(
            f"{_FLAG}={source} has a parameter {unknown[0]!r}"
            f"{did_you_mean(unknown[0], Row._fields)}; name some of {names}, or rows alone"
        )
    if not _wanted(function):
        raise UserError(f"{_FLAG}={source} takes nothing of a response; name some of {names}")
    return False


def _from_file(given: str, place: str) -> tuple[ModuleType, list[Path]]:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{given}: there is no file {path}; name one, as rewards.py:NAME")
    name = f"_reward_{sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{given}: {path} is no Python file; name one that ends in .py")
    if str(path.parent) not in sys.path:  # for what it imports; last, so that it hides nothing
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as import does; a dataclass needs it
    run = spec.loader.exec_module
    _execute(given, lambda: run(module), path)
    return module, [path]


def _module(given: str, place: str) -> tuple[ModuleType, list[Path]]:
    """Imports a module, once more where its file may have changed since it was imported: what runs
    has to be what is hashed."""
    before = sys.modules.get(place)
    module = _execute(given, lambda: importlib.import_module(place), Path(place))
    file = getattr(module, "__file__", None)
    files = [Path(file)] if file else []
    now = _identity(files, place)
    spec = getattr(module, "__spec__", None)
    again = spec is not None and spec.name == place  # `__main__` cannot be imported once more
    if again and file and before is not None and _IMPORTED.get(place) != now:
        module = _execute(given, lambda: importlib.reload(module), Path(file))
    _IMPORTED[place] = now
    return module, files


def _execute(given: str, load: Callable[[], Any], path: Path) -> Any:
    """Loads a module, whatever it does meanwhile."""
    try:
        return load()
    except SyntaxError as error:
        where = f"{error.filename or path}:{error.lineno}"
        raise UserError(f"{given}: {where}: {error.msg}; correct that line") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UserError(
            f"{given} could not be loaded: {where_raised(error, [path])}; correct it, or name "
            "another one"
        ) from error


def _named(given: str, module: ModuleType, name: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if found is None:
        theirs = [
            other
            for other, one in vars(module).items()
            if inspect.isfunction(one) and other[0] != "_"
        ]
        known = f"; it has {', '.join(theirs[:10])}" if theirs else "; it has no function"
        guess = did_you_mean(name, theirs) or known
        raise UserError(f"{given}: there is no function {name}{guess}")
    if not callable(found):
        raise UserError(f"{given}: {name} is {_shown(found)} and no function; name a function")
    return found


def _identity(files: Sequence[Path], place: str) -> str:
    """Returns a sha256 of a function's file; the module's name where there is none."""
    contents = [path.read_bytes() for path in files]
    return sha256(b"".join(contents)).hexdigest() if contents else place


def where_raised(error: BaseException, files: Sequence[Path]) -> str:
    """Returns an error's class and first line, and the last line of the user's files in it."""
    names = {str(path) for path in files}
    frames = reversed(traceback.extract_tb(error.__traceback__))
    line = next((f" in line {f.lineno}" for f in frames if f.filename in names), "")
    return first_line(error, with_class=True) + line


def as_before(before: str, now: str) -> str:
    """Returns how another version of a user's code is told from this one; both are identities."""
    return f"as it was before ({_short(before)}, now {_short(now)})"


def _short(identity: str) -> str:
    """Returns a digest's beginning; what is no digest as it is."""
    return identity[:12] if re.fullmatch("[0-9a-f]{32,}", identity) else identity


def _number(value: Any) -> float | None:
    """Returns a value as a float, also that of an array without axes; None for what is none."""
    if isinstance(value, (str, bytes)) or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"

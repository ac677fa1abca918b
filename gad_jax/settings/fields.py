"""Nested dataclasses as dotted paths: declaring, checking and filling them, and words for mistakes.

Where values come from is in `options.py` (flags) and `yaml_files.py`. Imports no jax.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from gad_jax.base import files
from gad_jax.base.errors import UserError
from gad_jax.base.numbers import as_float32

MOST = 2**31 - 1
"""The largest integer that arrays of counts and positions hold."""

_ANY = ("top_k", "heldout_seed")
"""Integers that no array holds: they are compared, or read as text."""

T = TypeVar("T")
Number = int | float


class FieldError(ValueError):
    """A dataclass refuses a value: the field at fault and why.

    `others` are the further fields of a check that compares several. Names are dotted paths from
    the dataclass that raises. `build` leads the message with the flag or file line of the first
    field that the user gave; flags come before files.
    """

    def __init__(self, field: str, message: str, *others: str):
        super().__init__(message)
        self.fields = (field, *others)


@dataclass(frozen=True)
class Bounds:
    """The range of a number."""

    minimum: Number | None = None
    above: Number | None = None
    maximum: Number | None = None
    below: Number | None = None

    def hold(self, value: Number) -> bool:
        """Whether the value is in the range; NaN is in none."""
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range after "must be"."""
        if self.maximum is None and self.below is None:
            return f"{self.minimum} or more" if self.above is None else f"greater than {self.above}"
        low = f"[{self.minimum}" if self.above is None else f"({self.above}"
        high = f"{self.maximum}]" if self.below is None else f"{self.below})"
        return f"in {low}, {high}"


def option(
    default: Any,
    help: str,
    unit: str = "",
    *,
    positional: bool = False,
    common: bool = False,
    filled: bool = False,
    location: bool = False,
    minimum: Number | None = None,
    above: Number | None = None,
    maximum: Number | None = None,
    below: Number | None = None,
    infinite: bool = False,
) -> Any:
    """Returns a dataclass field with its default, its line in `--help`, its unit and its range.

    The default `dataclasses.MISSING` makes the option required. A positional option is given by
    its place instead of a flag: `run: str = option(MISSING, "run directory", positional=True)`.
    A common option is in the short `--help`. A filled text is not empty. A location is text with
    paths, in which `build` replaces ~/, as a shell does not in `--out=~/runs`. The range needs a
    lower end, `minimum` or `above`. A dataclass that derives from `Checked` enforces both, and
    `build` does for a value that a user gave. A number is finite, unless inf has a meaning
    (`infinite`).
    """
    bounded = any(end is not None for end in (minimum, above, maximum, below))
    metadata = {
        "help": help,
        "unit": unit,
        "positional": positional,
        "common": common,
        "filled": filled,
        "location": location,
        "bounds": Bounds(minimum, above, maximum, below) if bounded else None,
        "infinite": infinite,
    }
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: Any, help: str, *, common: bool = True, **overrides: Any) -> Any:
    """Returns a dataclass field that holds a section of settings, its defaults overridden.

    Without `common`, the short `--help` leaves out all of it.
    """
    metadata = {"help": help, "common": common}
    return dataclasses.field(default_factory=lambda: kind(**overrides), metadata=metadata)


class Checked:
    """Base of the dataclasses of settings: every value is in the range that its option declares.

    A subclass with checks of several fields calls `super().__post_init__()` first.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(typing.cast(Any, self)):
            value = getattr(self, field.name)
            _check(field, value)
            bounds = field.metadata.get("bounds")
            unbounded = bounds is not None and bounds.maximum is None
            if unbounded and isinstance(value, int) and value > MOST and field.name not in _ANY:
                raise FieldError(field.name, f"{field.name}={value} must be {MOST} or less")


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises FieldError where a value is not in the range that its option declares.

    The float32 of a number is in it too: computed with 1 in place of 0.99999999999, or with 0 in
    place of 1e-50, a divisor would be 0.
    """
    bounds, name = field.metadata.get("bounds"), field.name
    if field.metadata.get("filled") and not value.strip():
        raise FieldError(name, f"{name} must not be empty")
    if bounds is not None and value is not None and not bounds.hold(value):
        raise FieldError(name, f"{name}={value} must be {bounds}")
    if not isinstance(value, float) or (math.isinf(value) and field.metadata.get("infinite")):
        return
    rounded = as_float32(value)
    if not math.isfinite(value):
        raise FieldError(name, f"{name}={value} must be a finite number")
    if not math.isfinite(rounded) or (bounds is not None and not bounds.hold(rounded)):
        needed = "a finite number" if bounds is None else str(bounds)
        raise FieldError(
            name, f"{name}={value} must be {needed} in float32 too, which rounds it to {rounded:g}"
        )


@dataclass(frozen=True)
class Leaf:
    """A field that holds a value, at its dotted path from the outermost dataclass."""

    path: str
    type: Any
    value: Any
    """In an instance; else the default, which is `dataclasses.MISSING` for a required field."""
    metadata: Mapping[str, Any]
    common: bool
    """Whether it is in the short `--help`."""

    @property
    def positional(self) -> bool:
        """Whether it is given by its place on the command line, without a flag."""
        return self.metadata.get("positional", False)

    @property
    def flag(self) -> str:
        """How a user writes it: `--batch.prompts`, or `RUN` for a positional one."""
        return self.path.upper() if self.positional else f"--{self.path}"


@dataclass(frozen=True)
class Given:
    """A value that the user gave, and the words that lead an error about it.

    `replaced` is what a file has in the place of a flag's value.
    """

    value: Any
    where: str
    from_flag: bool = False
    replaced: "Given | None" = None


@functools.cache
def hints(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass and their types, in order."""
    resolved = typing.get_type_hints(kind)
    return {field.name: resolved[field.name] for field in dataclasses.fields(kind)}


def leaves(
    kind: Any, instance: Any = None, prefix: str = "", common: bool = True
) -> Iterator[Leaf]:
    """All fields that hold values, sections opened, with their values in `instance` or defaults.

    Without `common`, none of them is common.
    """
    for field in dataclasses.fields(kind):
        path, hint, value = prefix + field.name, hints(kind)[field.name], _value(field, instance)
        known = common and field.metadata.get("common", False)
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, value, f"{path}.", known)
        else:
            yield Leaf(path, hint, value, field.metadata, known)


def _value(field: dataclasses.Field[Any], instance: Any) -> Any:
    if instance is not None:
        return getattr(instance, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def build(kind: type[T], given: Mapping[str, Given], instance: Any = None, prefix: str = "") -> T:
    """The dataclass with the given values over its defaults; a section keeps its own defaults.

    Raises UserError where a required field is absent or the dataclass refuses a value.
    """
    values = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        path, hint, value = prefix + field.name, hints(kind)[field.name], _value(field, instance)
        if dataclasses.is_dataclass(hint):
            value = build(typing.cast(Any, hint), given, value, f"{path}.")
        elif path in given:
            value = given[path].value
            if field.metadata.get("location"):
                value = files.from_home(value)
        elif value is MISSING:
            leaf = Leaf(path, hint, value, field.metadata, common=False)
            raise UserError(f"{leaf.flag} is needed: {field.metadata['help']}")
        values[field.name] = value
    try:
        for field in dataclasses.fields(typing.cast(Any, kind)):
            if prefix + field.name in given:
                _check(field, values[field.name])
        return kind(**values)
    except FieldError as error:
        raise UserError(_blame(error, prefix, given)) from error


def _blame(error: FieldError, prefix: str, given: Mapping[str, Given]) -> str:
    """A dataclass's refusal, led by the given value that is at fault, if there is one."""
    suspects = [given[path] for name in error.fields if (path := prefix + name) in given]
    suspects.sort(key=lambda value: not value.from_flag)
    return f"{suspects[0].where}: {error}" if suspects else str(error)


def typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`. Text may stand for a number, but no number for text or truth.

    Raises UserError, led by `where`, for a value of another type.
    """
    kinds = typing.get_args(hint) or (hint,)
    parsed = value
    if isinstance(value, str):
        if typing.get_origin(hint) is tuple:
            parsed = [part.strip() for part in value.split(",")] if value.strip() else []
        elif types.NoneType in kinds and value.lower() in ("none", "null"):
            parsed = None
        elif bool in kinds and value.lower() in ("true", "false"):
            parsed = value.lower() == "true"
    # pydantic alone would take true for 1, and "on" for true.
    fits = isinstance(parsed, bool) if kinds == (bool,) else not isinstance(parsed, bool)
    if fits or (isinstance(parsed, bool) and bool in kinds):
        try:
            parsed = _adapter(hint).validate_python(parsed)
            if parsed == parsed:  # not NaN
                return parsed
        except ValueError:  # pydantic's is one; ours says it shorter
            pass
    guess = did_you_mean(str(value), [kind for kind in kinds if isinstance(kind, str)])
    got = repr(value) if isinstance(value, str) else show(value)
    raise UserError(f"{where}: {_needed(hint)} is needed; got {got}{guess}")


_adapter = functools.cache(TypeAdapter)


def _needed(hint: Any) -> str:
    """A type in words."""
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if typing.get_origin(hint) is tuple:
        return f"a list (of each: {_needed(kinds[0])})"
    if kinds:
        return " or ".join(_needed(kind) for kind in kinds)
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, "none" if hint is types.NoneType else f"a {hint.__name__.lower()}")


def show(value: Any) -> str:
    """A value as a user would write it; `empty` for empty text."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    if isinstance(value, tuple):
        value = ",".join(map(show, value))
    return str(value) or "empty"


def no_such_field(kind: Any, path: str, more: Iterable[str] = ()) -> str:
    """Why a dotted path is no value field of `kind`, with the name that was probably meant.

    `more` are further names that would have been right in the place of the first one.
    """
    owner = kind
    *sections, last = path.split(".")
    for name in sections:
        kinds = hints(owner)
        if name not in kinds:
            others = [other for other, hint in kinds.items() if dataclasses.is_dataclass(hint)]
            return f"{owner.__name__} has no section {name!r}{_guess(kind, path, name, others)}"
        if not dataclasses.is_dataclass(kinds[name]):
            return f"{name!r} is a single value, not a section"
        owner = kinds[name]
    if dataclasses.is_dataclass(hints(owner).get(last)):
        field = next(iter(hints(hints(owner)[last])))
        return f"{last!r} is a section, not a single value; set its fields, such as {path}.{field}"
    others = [*hints(owner), *(more if owner is kind else ())]
    return f"{owner.__name__} has no field {last!r}{_guess(kind, path, last, others)}"


def _guess(kind: Any, path: str, name: str, siblings: list[str]) -> str:
    """The likeliest sibling of a mistyped name, or else the likeliest full paths."""
    full = [leaf.path for leaf in leaves(kind)]
    return did_you_mean(name, siblings) or did_you_mean(path, full, most=2)


def did_you_mean(word: str, options: Iterable[str], most: int = 1) -> str:
    """`; did you mean 'x'?` for the closest options, or nothing."""
    close = difflib.get_close_matches(word, list(options), n=most)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""

"""What `--help` shows: all settings, the common ones, or one section. Imports no jax."""

import argparse
import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gad_jax.base import verbosity
from gad_jax.base.errors import UserError
from gad_jax.settings import fields
from gad_jax.settings.fields import Given, Leaf

ALL = "all"


def text(
    kind: Any,
    which: str,
    *,
    program: str,
    description: str,
    config_default: str | None,
    preset: Mapping[str, Given],
    shows_progress: bool = False,
) -> str:
    """The text of `--help=WHICH`: `all` settings, those of a section, or with "" the common ones.

    `preset` are the values of the configuration `config_default`. Raises UserError for a section
    that does not exist.
    """
    leaves = list(fields.leaves(kind))
    shown = _chosen(kind, leaves, which)
    parser = argparse.ArgumentParser(
        prog=program,
        usage=_usage(leaves),
        description=description,
        epilog=_more(kind, len(shown), len(leaves)) if which == "" else None,
        formatter_class=partial(_Formatter, max_help_position=6),
        add_help=False,
    )
    if which in ("", ALL):
        _add_general(parser, kind, config_default)
        for flag, line in verbosity.FLAGS.items() if shows_progress else ():
            parser.add_argument(flag, action="store_true", help=line)
    groups: dict[str, Any] = {"": parser}
    # A section's own settings before those of the sections inside it.
    for leaf in sorted(shown, key=lambda leaf: leaf.path.count(".")):
        section = leaf.path.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(_heading(kind, section))
        line = _line(leaf, preset, config_default)
        if leaf.positional:
            groups[section].add_argument(leaf.path, metavar=leaf.flag, help=line)
        else:
            bare = {"nargs": "?"} if leaf.type is bool else {}
            metavar = _metavar(leaf.type)
            groups[section].add_argument(leaf.flag, metavar=metavar, help=line, **bare)
    return parser.format_help()


class _Formatter(argparse.HelpFormatter):
    """Breaks lines at blanks alone, so that a flag or a value is never cut at a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))


def _usage(leaves: list[Leaf]) -> str:
    positionals = "".join(f"{leaf.flag} " for leaf in leaves if leaf.positional)
    form = "--section.field=value" if any("." in leaf.path for leaf in leaves) else "--name=value"
    return f"%(prog)s {positionals}[--config FILE] [{form} …]"


def _chosen(kind: Any, leaves: list[Leaf], which: str) -> list[Leaf]:
    """The settings to show."""
    if which == "":
        return [leaf for leaf in leaves if leaf.common]
    if which == ALL:
        return leaves
    shown = [leaf for leaf in leaves if f"{leaf.path}.".startswith(f"{which}.")]
    if not shown:
        names = _sections(kind)
        known = f"; the sections are {', '.join(names)}" if names else f"; use --help={ALL}"
        guess = fields.did_you_mean(which, [*names, ALL])
        raise UserError(f"--help={which}: there is no such section{guess or known}")
    return shown


def _sections(kind: Any) -> list[str]:
    """The names of the outermost sections."""
    return [name for name, hint in fields.hints(kind).items() if dataclasses.is_dataclass(hint)]


def _more(kind: Any, shown: int, all_: int) -> str:
    """The last sentence of the short help."""
    return (
        f"These are the {shown} most common of {all_} settings. --help={ALL} shows all of them, "
        f"--help=SECTION one section: {', '.join(_sections(kind))}."
    )


def _add_general(parser: argparse.ArgumentParser, kind: Any, config_default: str | None) -> None:
    """The flags that every command has."""
    scope = f"{ALL}|SECTION" if _sections(kind) else ALL
    line = (
        "show this text and exit; of all settings or of one section"
        if _sections(kind)
        else ("show this text and exit")
    )
    parser.add_argument("--help", nargs="?", metavar=scope, help=line)
    line = "YAML file, or the NAME of configs/NAME.yaml; flags win over it"
    if config_default is not None:
        line += f" (without --config, {config_default} is loaded, whose values are shown below)"
    parser.add_argument("--config", metavar="FILE", help=line)
    line = "show where in the program an error comes from, not only its sentence"
    parser.add_argument("--debug", action="store_true", help=line)


def _heading(kind: Any, section: str) -> str:
    """A section's dotted path and what it holds."""
    *outer, name = section.split(".")
    for part in outer:
        kind = fields.hints(kind)[part]
    words = kind.__dataclass_fields__[name].metadata["help"]
    return textwrap.fill(f"{section} ({words})", 78, subsequent_indent="  ")


def _line(leaf: Leaf, preset: Mapping[str, Given], config_default: str | None) -> str:
    """What a setting is, its unit, its default, and its value in the default configuration."""
    return f"{leaf.metadata['help']} ({'; '.join(_notes(leaf, preset, config_default))})".replace(
        "%", "%%"
    )


def _notes(leaf: Leaf, preset: Mapping[str, Given], config_default: str | None) -> Iterator[str]:
    if leaf.metadata["unit"]:
        yield leaf.metadata["unit"]
    required = leaf.value is dataclasses.MISSING
    yield "required" if required else f"default: {fields.show(leaf.value)}"
    if leaf.path in preset:
        yield f"{config_default}: {fields.show(preset[leaf.path].value)}"


def _metavar(hint: Any) -> str:
    """What to write for a value of this type."""
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, kinds))
    if typing.get_origin(hint) is tuple:
        return f"{_metavar(kinds[0])},…"
    if kinds:
        return "|".join(_metavar(kind) for kind in kinds)
    return {int: "INT", float: "NUMBER", bool: "true|false", types.NoneType: "none"}.get(
        hint, "PATH" if hint is Path else "TEXT"
    )

"""Settings from files and flags: reading them, printing them. Imports no jax.

The settings themselves, and what they may be, are in `config.py` or next to the command that has
them. Any frozen dataclass works whose fields come from `fields.option` and `fields.section`.
"""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from gad_jax.base import verbosity
from gad_jax.base.errors import DEBUG, UserError, stop
from gad_jax.settings import fields, help, renamed, yaml_files
from gad_jax.settings.fields import Given

T = TypeVar("T")


def parse(
    kind: type[T],
    argv: Sequence[str],
    *,
    program: str,
    description: str,
    config_default: str | None = None,
    short_help: bool = False,
    shows_progress: bool = False,
) -> T:
    """The settings that a command line asks for: defaults, then `--config`, then flags.

    Flags are `--section.field=value` or `--section.field value`; a boolean flag without a value is
    true. Without `--config`, the configuration called `config_default` is loaded, if there is one.

    A command that `shows_progress` also has --quiet and --verbose (`base/verbosity.py`).

    `program` is the command as `--help` shows it. `--help` shows all settings, or with
    `short_help` the common ones; `--help=all` and `--help=SECTION` always work. As argparse does,
    this exits: with 0 after `--help`, with 2 and one sentence on stderr after a mistake; `read`
    raises instead.

        parse(Config, ["--batch.prompts=8"], program="python -m gad_jax.train", description="…")
    """
    try:
        return read(
            kind,
            argv,
            program=program,
            description=description,
            config_default=config_default,
            short_help=short_help,
            shows_progress=shows_progress,
        )
    except UserError as error:
        stop(error)


def read(
    kind: type[T],
    argv: Sequence[str],
    *,
    program: str,
    description: str,
    config_default: str | None = None,
    short_help: bool = False,
    shows_progress: bool = False,
) -> T:
    """As `parse`, but raises UserError for a mistake."""
    if "--debug" in argv:
        os.environ[DEBUG] = "1"
    which = _help_asked(argv)
    if which is not None:
        text = help.text(
            kind,
            which or ("" if short_help else help.ALL),
            program=program,
            description=description,
            config_default=config_default,
            preset=_preset(kind, config_default),
            shows_progress=shows_progress,
        )
        with contextlib.suppress(BrokenPipeError):  # of `--help | head`
            print(text, end="")
        sys.exit(0)
    if shows_progress:
        argv = verbosity.choose(argv)
    arguments, extras = _parser(kind).parse_known_args(argv)
    if extras:
        raise UserError(_unexpected(kind, extras, shows_progress))
    texts = {name: values for name, values in vars(arguments).items() if values is not None}
    texts.pop("debug", None)
    for name, values in texts.items():
        if len(values) > 1:
            raise UserError(f"--{name} is given twice ({', '.join(values)}); give it once")
    (config,) = texts.pop("config", [config_default])
    given = {} if config is None else yaml_files.read(kind, yaml_files.find(config))
    for leaf in fields.leaves(kind):
        for text in texts.get(leaf.path, ()):
            yaml_files.check_text(text, leaf.flag)
            where = f"{leaf.flag}{' ' if leaf.positional else '='}{text}"
            value, replaced = fields.typed(leaf.type, text, where), given.get(leaf.path)
            given[leaf.path] = Given(value, where, from_flag=True, replaced=replaced)
    completed = getattr(kind, "completed", dict)  # only what is asked for, never a stored file
    return fields.build(kind, completed(given))


def load(kind: type[T], config: str | Path) -> T:
    """The settings of a YAML file: its path, or the NAME of configs/NAME.yaml.

    A run's config.yaml may be older than the program, so a renamed setting is found under its old
    name too. Raises UserError for a mistake in the file.
    """
    given = yaml_files.read(kind, yaml_files.find(str(config)), accept_old_names=True)
    return fields.build(kind, given)


def to_yaml(config: Any) -> str:
    """All settings as YAML; `load` reads them back equal."""
    return _yaml(fields.leaves(type(config), config))


def changed_yaml(config: Any, argv: Sequence[str] = (), unused: tuple[str, ...] = ()) -> str:
    """The settings that are not at their defaults, or that these flags set, as YAML for people.

    `unused` are beginnings of paths, such as `dpo.`: of these, only those that flags set."""
    flags = {argument.partition("=")[0] for argument in argv}
    defaults = {leaf.path: leaf.value for leaf in fields.leaves(type(config))}
    return _yaml(
        leaf
        for leaf in fields.leaves(type(config), config)
        if leaf.flag in flags
        or (leaf.value != defaults[leaf.path] and not leaf.path.startswith(unused))
    )


def _yaml(leaves: Iterable[fields.Leaf]) -> str:
    tree: dict[str, Any] = {}
    for leaf in leaves:
        *sections, name = leaf.path.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        value = os.fspath(leaf.value) if isinstance(leaf.value, Path) else leaf.value
        branch[name] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True) if tree else ""


def differences(a: T, b: T) -> list[str]:
    """The fields in which two settings differ, such as `batch.prompts: 8 → 16`."""
    pairs = zip(fields.leaves(type(a), a), fields.leaves(type(b), b), strict=True)
    return [
        f"{old.path}: {fields.show(old.value)} → {fields.show(new.value)}"
        for old, new in pairs
        if old.value != new.value
    ]


# The command line


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError."""

    def error(self, message: str) -> NoReturn:
        found = re.match(r"argument (\S+): expected one argument", message)
        if found:
            message = f"{found[1]}: a value is needed, as in {found[1]}=VALUE"
        raise UserError(message)


def _parser(kind: type) -> _Parser:
    """A parser in which every field is an option. Its texts are in `help.py`."""
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--config", action="append")
    parser.add_argument("--debug", action="store_const", const=["true"])
    for leaf in fields.leaves(kind):
        if leaf.positional:
            parser.add_argument(leaf.path, nargs="?", type=lambda text: [text])
        else:
            bare: dict[str, Any] = {"nargs": "?", "const": "true"} if leaf.type is bool else {}
            parser.add_argument(leaf.flag, action="append", **bare)
    return parser


def _help_asked(argv: Sequence[str]) -> str | None:
    """What `--help` is asked about, "" for `--help` alone; None where it is not given."""
    for argument in argv:
        if argument in ("-h", "--help"):
            return ""
        if argument.startswith("--help="):
            return argument.removeprefix("--help=")
    return None


def _preset(kind: type, config_default: str | None) -> dict[str, Given]:
    """The values of the default configuration."""
    try:
        return (
            {} if config_default is None else yaml_files.read(kind, yaml_files.find(config_default))
        )
    except UserError:  # the sentence comes where the file is needed; --help always answers
        return {}


def _unexpected(kind: type, extras: list[str], shows_progress: bool) -> str:
    """Why an argument is not understood, with the flag that was probably meant."""
    flag = next((extra for extra in extras if extra.startswith("-")), None)
    if flag is None:
        return f"{extras[0]!r} is not expected here; options are written --name=value"
    name = flag.partition("=")[0]
    if not name.startswith("--"):
        return f"{name}: no such option; options are written --name=value"
    path = name.removeprefix("--")
    new = renamed.new_name(kind, path)
    if new is not None:
        return f"{name}: {path!r} is now called {new!r}"
    more = ["config", "help"]
    if shows_progress:
        more += [known.removeprefix("--") for known in verbosity.FLAGS]
    return f"{name}: {fields.no_such_field(kind, path, more)}"

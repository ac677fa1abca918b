"""Settings from YAML files and flags: reading them, `--help`, printing them. Imports no jax.

The settings themselves, and what they may be, are in `config.py` or beside the command that has
them; any frozen dataclass whose fields come from `config.option` and `config.section` works here.
"""

import argparse
import dataclasses
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from yaml.constructor import SafeConstructor

from gad_jax.base.errors import DEBUG, UserError, first_line, stop
from gad_jax.base.redaction import looks_secret
from gad_jax.settings import fields
from gad_jax.settings.fields import Given, Leaf

T = TypeVar("T")


def parse(
    kind: type[T],
    argv: Sequence[str],
    *,
    program: str,
    description: str,
    config_default: str | None = None,
) -> T:
    """The settings that a command line asks for: defaults, then `--config`, then flags.

    Flags are `--section.field=value` or `--section.field value`; a truth value may be left out, and
    is true then. Without `--config`, the
    configuration called `config_default` is loaded, if there is one. `program` is the command as
    `--help` shows it. As argparse does, this exits: with 0 after `--help`, with 2 and one sentence
    on stderr after a mistake; `read` raises instead.

        parse(Config, ["--batch.prompts=8"], program="python -m gad_jax.train", description="…")
    """
    try:
        return read(
            kind,
            argv,
            program=program,
            description=description,
            config_default=config_default,
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
) -> T:
    """As `parse`, but raises UserError for a mistake."""
    if "--debug" in argv:
        os.environ[DEBUG] = "1"
    parser = _parser(kind, program, description, config_default)
    arguments, extras = parser.parse_known_args(argv)
    if extras:
        raise UserError(_unexpected(kind, extras))
    texts = {name: values for name, values in vars(arguments).items() if values is not None}
    texts.pop("debug", None)
    for name, values in texts.items():
        if len(values) > 1:
            raise UserError(f"--{name} is given twice ({', '.join(values)}); give it once")
    (config,) = texts.pop("config", [config_default])
    given = {} if config is None else _read_yaml(kind, _find(config))
    for leaf in fields.leaves(kind):
        for text in texts.get(leaf.path, ()):
            _check_text(text, leaf.flag)
            where = f"{leaf.flag}{' ' if leaf.positional else '='}{text}"
            given[leaf.path] = Given(fields.typed(leaf.type, text, where), where, from_flag=True)
    return fields.build(kind, given)


def load(kind: type[T], config: str | Path) -> T:
    """The settings of a YAML file: its path, or the NAME of configs/NAME.yaml.

    Raises UserError for a mistake in it.
    """
    return fields.build(kind, _read_yaml(kind, _find(str(config))))


def to_yaml(config: Any) -> str:
    """All settings as YAML; `load` reads them back equal."""
    tree: dict[str, Any] = {}
    for leaf in fields.leaves(type(config), config):
        *sections, name = leaf.path.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        value = os.fspath(leaf.value) if isinstance(leaf.value, Path) else leaf.value
        branch[name] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


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


def _parser(kind: type, program: str, description: str, config_default: str | None) -> _Parser:
    """A parser in which every field is an option, grouped by section."""
    leaves = list(fields.leaves(kind))
    positionals = "".join(f"{leaf.flag} " for leaf in leaves if leaf.positional)
    form = "--section.field=value" if any("." in leaf.path for leaf in leaves) else "--name=value"
    parser = _Parser(
        prog=program,
        usage=f"%(prog)s {positionals}[--config FILE] [{form} …]",
        description=description,
        allow_abbrev=False,
    )
    text = "YAML file, or the NAME of configs/NAME.yaml; flags win over it"
    if config_default is not None:
        text += f" (without --config, {config_default} is loaded, whose values are shown below)"
    parser.add_argument("--config", action="append", metavar="FILE", help=text)
    text = "show where in the program an error comes from, not only its sentence"
    parser.add_argument("--debug", action="store_const", const=["true"], help=text)
    groups: dict[str, Any] = {"": parser}
    for leaf, help in zip(leaves, _help(kind, leaves, config_default), strict=True):
        section = leaf.path.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(*_title(kind, section))
        if leaf.positional:
            groups[section].add_argument(
                leaf.path, nargs="?", type=lambda text: [text], metavar=leaf.flag, help=help
            )
        else:
            bare: dict[str, Any] = {"nargs": "?", "const": "true"} if leaf.type is bool else {}
            groups[section].add_argument(
                leaf.flag, action="append", metavar=_metavar(leaf.type), help=help, **bare
            )
    return parser


def _title(kind: Any, section: str) -> tuple[str, str]:
    """A section's heading in `--help`: its dotted path and what it holds."""
    *outer, name = section.split(".")
    for part in outer:
        kind = fields.hints(kind)[part]
    return section, kind.__dataclass_fields__[name].metadata["help"]


def _help(kind: type, leaves: list[Leaf], config_default: str | None) -> Iterator[str]:
    """Each field's line: what it is, its unit, its default, the default configuration's value."""
    try:
        preset = {} if config_default is None else _read_yaml(kind, _find(config_default))
    except UserError:  # it will be shown where the file is needed; --help always answers
        preset = {}
    for leaf in leaves:
        notes = [leaf.metadata["unit"]] if leaf.metadata["unit"] else []
        required = leaf.value is dataclasses.MISSING
        notes += ["required" if required else f"default: {fields.show(leaf.value)}"]
        if leaf.path in preset:
            notes += [f"{config_default}: {fields.show(preset[leaf.path].value)}"]
        yield f"{leaf.metadata['help']} ({'; '.join(notes)})".replace("%", "%%")


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


def _unexpected(kind: type, extras: list[str]) -> str:
    """Why an argument is not understood, with the flag that was probably meant."""
    flag = next((extra for extra in extras if extra.startswith("-")), None)
    if flag is None:
        return f"{extras[0]!r} is not expected here; options are written --name=value"
    name = flag.partition("=")[0]
    if not name.startswith("--"):
        return f"{name}: no such option; options are written --name=value"
    return f"{name}: {fields.no_such_field(kind, name.removeprefix('--'), ('config', 'help'))}"


# YAML files


def _find(config: str) -> Path:
    """The file that `--config` names: configs/NAME.yaml here or beside the package, or a path."""
    folders = (Path("configs"), Path(__file__).parents[2] / "configs")
    named = [folder / f"{config}.yaml" for folder in folders if Path(config).name == config]
    for path in (*named, Path(config).expanduser()):
        if path.is_file():
            return path
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    guess = fields.did_you_mean(Path(config).name.removesuffix(".yaml"), names)
    raise UserError(
        f"--config={config}: no such file or configuration{guess}"
        f"{' ' if guess else '; '}configurations here: {', '.join(names) or 'none'}"
    )


def _read_yaml(kind: type, path: Path) -> dict[str, Given]:
    """The values of a file, typed, by their dotted paths. Raises UserError, with the line."""
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = " ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{path}{line}: not valid YAML: {reason}; correct that line") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {first_line(error)}; correct the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    leaves = {leaf.path: leaf for leaf in fields.leaves(kind)}
    return {} if root is None else dict(_walk(kind, leaves, root, str(path), "", {}))


def _walk(
    kind: type,
    leaves: Mapping[str, Leaf],
    node: yaml.Node,
    file: str,
    prefix: str,
    seen: dict[str, int],
) -> Iterator[tuple[str, Given]]:
    """The values below one mapping of a file; `seen` are the lines of the names so far."""
    if not isinstance(node, yaml.MappingNode):
        what = f"{prefix.removesuffix('.')!r} is a section and" if prefix else "the file"
        raise UserError(f"{_line(file, node)}: {what} needs lines of the form `name: value`")
    for key, value in node.value:
        where = _line(file, key)
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{where}: a name is needed before the colon")
        path = f"{prefix}{key.value}"
        if path in seen:
            raise UserError(
                f"{where}: {path!r} is given twice, first in line {seen[path]}; keep one"
            )
        seen[path] = key.start_mark.line + 1
        if path in leaves:
            yield path, _value(leaves[path], value, file)
        elif any(known.startswith(f"{path}.") for known in leaves):
            if value.tag != "tag:yaml.org,2002:null":  # a section whose lines are commented out
                yield from _walk(kind, leaves, value, file, f"{path}.", seen)
        else:
            raise UserError(f"{where}: {fields.no_such_field(kind, path)}")


def _value(leaf: Leaf, node: yaml.Node, file: str) -> Given:
    where = f"{_line(file, node)}: {leaf.path}"
    try:
        value = SafeConstructor().construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        reason = getattr(error, "problem", None) or error
        raise UserError(
            f"{where}: not a plain value: {reason}; write text, a number, true, false or a list"
        ) from error
    if isinstance(value, str):
        _check_text(value, where)
    return Given(fields.typed(leaf.type, value, where), where)


def _check_text(text: str, where: str) -> None:
    """Refuses what must not be stored in a run's config.yaml, and what no path may hold."""
    if looks_secret(text):
        raise UserError(
            f"{where}: this looks like a secret, and settings are printed and stored; put it into "
            "an environment variable"
        )
    if "\0" in text:
        raise UserError(f"{where}: a NUL character is not allowed; remove it")


def _line(file: str, node: yaml.Node) -> str:
    return f"{file}:{node.start_mark.line + 1}"

"""Settings from YAML files, each value with its file and line. Imports no jax."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import yaml
from yaml.constructor import SafeConstructor

from gad_jax.base import files
from gad_jax.base.errors import UserError, first_line
from gad_jax.base.redaction import looks_secret
from gad_jax.settings import fields, renamed
from gad_jax.settings.fields import Given, Leaf

_MOST_BYTES = 2**18
_MOST_VALUES = 10_000
_MOST_DEPTH = 50


def find(config: str) -> Path:
    """The file that `--config` names: configs/NAME.yaml here or in the package, or a path."""
    folders = (Path("configs"), Path(__file__).parents[1] / "configs")
    named = [folder / f"{config}.yaml" for folder in folders if Path(config).name == config]
    for path in (*named, Path(os.path.expanduser(config))):
        if path.is_file():
            return path
        if kind := files.irregular(path):
            raise UserError(f"--config={config}: {path} is {kind} and no file; give a YAML file")
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    guess = fields.did_you_mean(Path(config).name.removesuffix(".yaml"), names)
    raise UserError(
        f"--config={config}: no such file or configuration{guess}"
        f"{' ' if guess else '; '}configurations here: {', '.join(names) or 'none'}"
    )


def read(kind: type, path: Path, accept_old_names: bool = False) -> dict[str, Given]:
    """The values of a file, typed, by their dotted paths.

    With `accept_old_names`, the old name of a renamed setting is read as the new one. Raises
    UserError, with the line.
    """
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    try:
        root = yaml.compose(_text(path), Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply; correct the file") from error
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
    return {} if root is None else dict(_Reader(kind, str(path), accept_old_names).values(root))


def _text(path: Path) -> str:
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise UserError(
            f"{path}: has {size} bytes, and a file of settings has less than {_MOST_BYTES}; give "
            "such a file"
        )
    return path.read_text(encoding="utf-8")


def _count(node: yaml.Node, depth: int = 0, known: dict[int, int] | None = None) -> int:
    """Returns how many values a node stands for with its aliases written out. Raises ValueError
    for one that is nested too deeply, also in itself."""
    known = {} if known is None else known
    if depth > _MOST_DEPTH:
        raise ValueError(f"nested more than {_MOST_DEPTH} times")
    if id(node) not in known:
        inside = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inside = [one for pair in node.value for one in pair]
        known[id(node)] = 1 + sum(_count(one, depth + 1, known) for one in inside)
    return known[id(node)]


class _Reader:
    """Walks the nodes of one file."""

    def __init__(self, kind: type, file: str, accept_old_names: bool):
        self.kind = kind
        self.file = file
        self.accept_old_names = accept_old_names
        self.leaves = {leaf.path: leaf for leaf in fields.leaves(kind)}
        self.lines: dict[str, int] = {}  # of the names so far

    def values(self, node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, Given]]:
        """The values below one mapping."""
        if not isinstance(node, yaml.MappingNode):
            what = f"{prefix.removesuffix('.')!r} is a section and" if prefix else "the file"
            raise UserError(f"{self.place(node)}: {what} needs lines of the form `name: value`")
        for key, value in node.value:
            path = self.path(key, prefix)
            if path in self.leaves:
                yield path, self.given(self.leaves[path], value)
            elif self.is_section(path):
                if value.tag != "tag:yaml.org,2002:null":  # a section whose lines are comments
                    yield from self.values(value, f"{path}.")
            else:
                raise UserError(f"{self.place(key)}: {fields.no_such_field(self.kind, path)}")

    def path(self, key: yaml.Node, prefix: str) -> str:
        """The dotted path of a name, the present one for an old name."""
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{self.place(key)}: a name is needed before the colon")
        path = f"{prefix}{key.value}"
        new = renamed.new_name(self.kind, path)
        if new is not None and not self.accept_old_names:
            raise UserError(f"{self.place(key)}: {path!r} is now called {new!r}")
        path = new or path
        if path in self.lines:
            raise UserError(
                f"{self.place(key)}: {path!r} is given twice, first in line {self.lines[path]}; "
                "keep one"
            )
        self.lines[path] = key.start_mark.line + 1
        return path

    def is_section(self, path: str) -> bool:
        """Whether settings are below the path, or were before they were renamed."""
        known = (*self.leaves, *renamed.RENAMED)
        return any(name.startswith(f"{path}.") for name in known)

    def given(self, leaf: Leaf, node: yaml.Node) -> Given:
        """The typed value of a node."""
        where = f"{self.place(node)}: {leaf.path}"
        try:
            if _count(node) > _MOST_VALUES:  # by aliases of aliases, a few lines may hold billions
                raise ValueError(f"more than {_MOST_VALUES} values")
            value = SafeConstructor().construct_document(node)
        except (yaml.YAMLError, ValueError) as error:
            reason = getattr(error, "problem", None) or error
            raise UserError(
                f"{where}: not a plain value: {reason}; write text, a number, true, false or a list"
            ) from error
        if isinstance(value, dict) and leaf.path.endswith("chat_template_kwargs"):
            value = json.dumps(value, default=str)
        if isinstance(value, str):
            check_text(value, where)
        return Given(fields.typed(leaf.type, value, where), where)

    def place(self, node: yaml.Node) -> str:
        """The file and line of a node."""
        return f"{self.file}:{node.start_mark.line + 1}"


def check_text(text: str, where: str) -> None:
    """Refuses what must not be stored in a run's config.yaml, and what no path may hold."""
    if looks_secret(text):
        raise UserError(
            f"{where}: this looks like a secret, and settings are printed and stored; put it into "
            "an environment variable"
        )
    if "\0" in text:
        raise UserError(f"{where}: a NUL character is not allowed; remove it")

"""A chat template: its text, the arguments that it is given, and rendering in bounded time.

What it writes around a turn is probed in `turns.py`; tokens are in `chat.py`.
"""

import datetime
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError, first_line

Message = Mapping[str, str]
"""One turn of a conversation: {"role": …, "content": …}."""

MOST_SECONDS = 5.0
MOST_CHARACTERS = 2**26
"""Limits of one rendering: a template is a program, and may have loops without end."""

TODAY = datetime.datetime(2024, 7, 26)
"""Some templates write today's date. A prompt has to be the same tomorrow, or a resumed run would
see other tokens; this is the date that Llama 3.1's own template falls back to."""

_WIDE = re.compile(r"\d{7}")  # the width of a field in '%10000000d'

_deadline: ContextVar[float] = ContextVar("deadline", default=0.0)


class _TooLong(Exception):
    """The rendering has used up its time."""


class Template:
    """The chat template of a model directory with its arguments.

    `special` are the tokenizer's special tokens by name, which templates read. Raises UserError
    for a template that is no Jinja, and for an argument that it never reads.
    """

    def __init__(
        self,
        directory: str | Path,
        source: str,
        special: Mapping[str, Any],
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory, self.source, self.special = str(directory), source, dict(special)
        self.arguments = dict(arguments or {})
        try:
            self._environment = _environment()
            self._compiled = self._environment.from_string(source)
        except Exception as error:
            raise self._refusal(error) from error
        self.reads = self._variables()
        for name in self.arguments:
            self._check_read(name)

    def render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """Returns the text of a conversation, as transformers renders it.

        Raises UserError where the template refuses the conversation or takes too long.
        """
        token = _deadline.set(time.monotonic() + MOST_SECONDS)
        try:
            parts, length = [], 0
            for part in self._compiled.generate(
                **self.special
                | {"messages": [dict(message) for message in messages]}
                | {"tools": None, "documents": None, "add_generation_prompt": generation_prompt}
                | self.arguments
            ):
                parts.append(part)
                length += len(part)
                if length > MOST_CHARACTERS:
                    raise _TooLong
            return "".join(parts)
        except _TooLong:
            raise UserError(
                f"{self.directory}: the chat template takes more than {MOST_SECONDS:.0f} seconds "
                f"or {MOST_CHARACTERS >> 20} million characters for one conversation; use "
                "the model's own template"
            ) from None
        except Exception as error:  # a template is a program: it may raise anything
            raise self._refusal(error) from error
        finally:
            _deadline.reset(token)

    def with_arguments(self, arguments: Mapping[str, Any]) -> "Template":
        """Returns the template with other arguments."""
        return Template(self.directory, self.source, self.special, arguments)

    def stored(self, closing: str = "") -> str:
        """Returns the template as an export has it: without arguments it writes what this one
        writes with them. An argument that is given then still counts.

        `closing` is what follows the prompt, to close a thought that the template opens.
        """
        lines = [
            f"{{%- if {name} is not defined %}}"
            f"{{%- set {name} = {_literal(value)} %}}{{%- endif %}}\n"
            for name, value in self.arguments.items()
        ]
        end = ""
        if closing:
            end = f"{{%- if add_generation_prompt %}}{{{{- {_literal(closing)} }}}}{{%- endif %}}"
        return "".join(lines) + self.source + end

    @property
    def digested(self) -> str:
        """The template as the digest of a run has it.

        One that writes its date as 26 Jul 2024 began with a macro in earlier versions, whose runs
        resume with the same digest alone.
        """
        forms = set(re.findall(r"strftime_now\(\s*['\"]([^'\"]*)", self.source))
        macro = "{%- macro strftime_now(format) %}26 Jul 2024{%- endmacro %}\n"
        return macro + self.source if forms == {"%d %b %Y"} else self.source

    def _variables(self) -> tuple[str, ...]:
        """Returns the names that a template reads and nothing sets: its possible arguments."""
        from jinja2 import meta, nodes

        tree = self._environment.parse(self.source)
        read = meta.find_undeclared_variables(tree)
        names = tree.find_all(nodes.Name)
        # Jinja also counts what one branch sets and a later line reads. An argument is asked for.
        written = {name.name for name in names if name.ctx == "store"}
        for asking in tree.find_all((nodes.Test, nodes.Filter, nodes.Or)):
            asked = asking.left if isinstance(asking, nodes.Or) else asking.node
            how = "default" if isinstance(asking, nodes.Or) else asking.name
            if how in ("defined", "undefined", "default", "d") and isinstance(asked, nodes.Name):
                written.discard(asked.name)
        read -= written
        ours = {"messages", "add_generation_prompt", "tools", "documents", *self.special}
        return tuple(sorted(read - ours - set(self._environment.globals)))

    def _check_read(self, name: str) -> None:
        if name in self.reads or name in self.special:
            return
        known = f"it reads {', '.join(self.reads)}" if self.reads else "it reads none"
        raise UserError(
            f"chat_template_kwargs: the chat template of {self.directory} never reads {name!r}; "
            f"{known}"
        )

    def _refusal(self, error: Exception) -> UserError:
        return UserError(
            f"{self.directory}: the chat template refuses the conversation ({first_line(error)}); "
            "change the messages or the template"
        )


def _literal(value: Any) -> str:
    """Returns a JSON value as Jinja writes it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        pairs = (f"{_literal(name)}: {_literal(held)}" for name, held in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return "none" if value is None else json.dumps(value)


def _check_time() -> None:
    if time.monotonic() > _deadline.get():
        raise _TooLong


def _timed(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _check_time()
        yield value


def _environment() -> Any:
    """Returns transformers' sandbox, in which loops, calls and the sizes of texts are bounded.

    It is taken from a compiled template, so that filters and globals are those of the installed
    version.
    """
    from jinja2 import compiler, nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    class Bounded(compiler.CodeGenerator):
        def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
            for loop in node.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, "gad_timed", [], [], None, None)
            super().visit_Template(node, frame)

        def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
            self.write("environment.gad_sized(")
            super().visit_Concat(node, frame)
            self.write(")")

    environment: Any = _compile_jinja_template("").environment.overlay()
    environment.code_generator_class = Bounded
    filters = {name: _bounded_call(filter) for name, filter in environment.filters.items()}
    environment.filters = filters | {"gad_timed": _timed}
    environment.globals = environment.globals | {"strftime_now": TODAY.strftime}
    environment.intercepted_binops = frozenset({"+", "*", "**", "%"})
    environment.call = _bounded_call(environment.call)
    environment.call_binop = _bounded_operation
    environment.gad_sized = _sized
    return environment


def _bounded_call(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def bounded(*arguments: Any, **named: Any) -> Any:
        _check_time()  # macros call each other: recursion needs no loop
        for value in (*arguments, *named.values()):
            if isinstance(value, int) and abs(value) > MOST_CHARACTERS:  # 'x'.center(10**10)
                raise _TooLong
        return call(*arguments, **named)

    return bounded


def _bounded_operation(context: Any, operator: str, left: Any, right: Any) -> Any:
    if operator == "**":
        if abs(left) > MOST_CHARACTERS or abs(right) > 64:
            raise _TooLong
        return left**right
    if operator == "%":
        if isinstance(left, str) and _WIDE.search(left):
            raise _TooLong
        return left % right
    if operator == "+":
        return _sized(left + right)
    for one, other in ((left, right), (right, left)):
        times = one if isinstance(one, int) and hasattr(other, "__len__") else 0
        if times and times * len(other) > MOST_CHARACTERS:
            raise _TooLong
    return left * right


def _sized(value: Any) -> Any:
    if hasattr(value, "__len__") and len(value) > MOST_CHARACTERS:
        raise _TooLong
    return value

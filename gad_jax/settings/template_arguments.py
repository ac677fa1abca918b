"""Arguments of a chat template as a user writes them. Imports no jax.

Whether a template reads them is checked in `data/template.py`.
"""

import json
from collections.abc import Mapping
from typing import Any

from gad_jax.settings.fields import FieldError

HELP = "values for the chat template, as enable_thinking=false"

RESERVED = ("messages", "add_generation_prompt", "tools", "documents", "chat_template")
"""What the program passes to a template itself, and what it does not support."""

_WORDS = {"true": True, "false": False, "none": None, "null": None}


def parse(text: str, field: str = "chat_template_kwargs") -> dict[str, Any]:
    """Returns the arguments in a text: `KEY=VALUE,KEY=VALUE` or a JSON object.

    true, false, none and numbers are values of their own types, in any case; the rest is text. A
    text with a comma needs JSON. Raises FieldError, led by the name of the setting.

    Example: "enable_thinking=False,effort=low" → {"enable_thinking": False, "effort": "low"}.
    """
    if not text.strip():
        return {}
    if text.lstrip().startswith("{"):
        found = _json(text, field)
    else:
        found = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not name.isidentifier():
                raise FieldError(
                    field,
                    f"{field}: {part.strip()!r} is not NAME=VALUE, as enable_thinking=false; write "
                    "several with commas, or a JSON object",
                )
            if name in found:
                raise FieldError(field, f"{field} has {name!r} twice; keep one")
            found[name] = _value(value)
    check(found, field)
    return found


def check(arguments: Mapping[str, Any], field: str = "chat_template_kwargs") -> None:
    """Raises FieldError for arguments that are not for a user to set."""
    for name in arguments:
        if name in RESERVED:
            raise FieldError(
                field, f"{field}: {name} is not for you to set: the conversation decides it"
            )


def show(arguments: Mapping[str, Any]) -> str:
    """Returns arguments as one text that `parse` reads back; the same for the same arguments."""
    return json.dumps(dict(arguments), sort_keys=True, ensure_ascii=False) if arguments else ""


def canonical(text: str) -> str:
    """Returns the same text for the same arguments; `{}` for none that are given as such."""
    return json.dumps(parse(text), sort_keys=True, ensure_ascii=False) if text.strip() else ""


def _json(text: str, field: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise FieldError(field, f"{field} has {name!r} twice; keep one")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=once)
    except FieldError:
        raise
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FieldError(
            field,
            f'{field} is not a JSON object, such as {{"enable_thinking": false}}; or write '
            "enable_thinking=false",
        )
    return found


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            found = number(text)
        except ValueError:
            continue
        return found if found == found and abs(found) != float("inf") else text
    return text

"""Where a model's weights are from: its name on the hub, and the licence that its files state."""

import re
from pathlib import Path
from typing import Any

import yaml

from gad_jax.models.builtin import smollm2

RECORD = "gad_jax.json"
"""File of an export that says what it was made from."""

_TEXTS = (
    ("apache-2.0", re.compile(r"Apache License\s+Version 2\.0")),
    ("mit", re.compile(r"Permission is hereby granted, free of charge")),
    ("gemma", re.compile(r"Gemma Terms of Use")),
    ("llama3.1", re.compile(r"(?i)Llama 3\.1 Community License")),
    ("llama3.2", re.compile(r"(?i)Llama 3\.2 Community License")),
    ("llama3.3", re.compile(r"(?i)Llama 3\.3 Community License")),
    ("llama3", re.compile(r"(?i)Meta Llama 3 Community License")),
)
"""The hub's names of licences, and words that only their texts have."""
_FIELDS = ("license", "license_name", "license_link")


def is_hub_id(name: str) -> bool:
    """Returns whether a model's name is an `org/name` of the hub, as `source.resolve` reads it."""
    known = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)
    return bool(known) and not Path(name).expanduser().exists()


def hub_id(name: str, directory: Path) -> str | None:
    """Returns the name on the hub of the model called `name`; None for one that only lies here.

    An export in `directory` has that of the model which its run started from.
    """
    if name == smollm2.NAME:
        return smollm2.HUB_ID
    if is_hub_id(name):
        return name
    if not (directory / RECORD).is_file():
        return None
    base = front_matter(directory).get("base_model")
    return base if isinstance(base, str) and is_hub_id(base) else None


def licence(name: str, directory: Path) -> dict[str, str]:
    """Returns the licence as model cards have it: `license`, `license_name`, `license_link`.

    It is what README.md states, else what the text of LICENSE is; {} where neither says it.
    """
    if name == smollm2.NAME:
        return {"license": smollm2.LICENCE}
    stated = front_matter(directory)
    found = {field: str(stated[field]) for field in _FIELDS if stated.get(field)}
    if found.get("license", "unknown") != "unknown":
        return found
    for path in sorted(directory.glob("*")):
        if path.is_file() and re.match(r"(?i)licen[cs]e\b", path.name):
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(100_000)
            known = next((name for name, words in _TEXTS if words.search(text)), None)
            if known:
                return {"license": known}
            return {"license": "other", "license_name": path.name, "license_link": path.name}
    return {}


def front_matter(directory: Path) -> dict[str, Any]:
    """Returns the YAML that begins README.md; {} where there is none that can be read."""
    path = directory / "README.md"
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", errors="replace") as file:
        found = re.match(r"\ufeff?---\r?\n(.*?)\n---\s*(\n|$)", file.read(100_000), re.DOTALL)
    if found is None or ("&" in found[1] and "*" in found[1]):  # aliases can grow without bound
        return {}
    try:
        content = yaml.safe_load(found[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

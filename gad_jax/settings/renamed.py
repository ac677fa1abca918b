"""Settings that have a new name.

Who renames a setting adds a line here: the old dotted path and the new one. A flag or a file with
the old name then gets a sentence with the new name. The config.yaml of an older run is read as if
it had the new name, so that the run can still be resumed and exported.
"""

from typing import Any

from gad_jax.settings import fields

RENAMED: dict[str, str] = {}
"""Old dotted path → new dotted path."""


def new_name(kind: Any, path: str) -> str | None:
    """The present path of a setting of `kind` that was once called `path`; None for others."""
    if path not in RENAMED:
        return None
    known = (leaf.path for leaf in fields.leaves(kind))
    return next((new for new in known if new == RENAMED[path]), None)

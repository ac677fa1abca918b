"""Keeps secrets out of everything that is shown or stored. Imports no jax."""

import os
import re

MASK = "[redacted]"
_LOOKS_SECRET = re.compile(
    r"\b(?:sk|pk|rk|xai|gsk|pplx|nvapi|hf|ghp|gho|ghs|github_pat|glpat|xox[abprs])[-_][\w-]{12,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}"  # a JSON web token
    r"|(?<=Bearer )\S{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_variables: set[str] = set()


def protect(variable: str) -> None:
    """Has `redact` mask the value of this environment variable from now on."""
    _variables.add(variable)


def redact(text: str) -> str:
    """Returns the text without the protected values and without what looks like a key."""
    values = {os.environ.get(variable, "").strip() for variable in _variables}
    for value in sorted(filter(None, values), key=len, reverse=True):
        text = text.replace(value, MASK)
    return _LOOKS_SECRET.sub(MASK, text)


def looks_secret(text: str) -> bool:
    """Returns whether the text holds something that looks like a key or a token."""
    return _LOOKS_SECRET.search(text) is not None

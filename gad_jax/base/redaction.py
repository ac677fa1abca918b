"""Keeping secrets, and codes that steer a terminal, out of what is printed, logged and stored."""

import contextlib
import logging
import os
import re
import traceback
from typing import Any

MASK = "[redacted]"

# hf- with a dash is no token: hf-internal-testing is an organisation of the hub.
_PATTERNS = re.compile(
    r"(?<![\w-])(?:"
    r"(?:sk|pk|rk|xai|gsk|pplx|nvapi|glpat|xox[abprs])[-_][\w-]{16,}"
    r"|(?:hf|gh[pousr]|github_pat)_\w{16,}"
    r"|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{30,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}"  # a JSON web token
    r")|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")
# user:password@ in a URL, as of a proxy or a database
_USERINFO = re.compile(r"(?<=://)([^\s/@:]*):[^\s/@]+(?=@)")
_NAMES = re.compile(
    r"(?i)(?:(?:^|_)(?:KEY|PAT)|(?<!MON)(?<!TUR)(?<!HOT)(?<!DON)(?<!HOC)(?<!WHIS)KEY|TOKEN|SECRET"
    r"|CREDENTIAL|PASSWORD|PASSWD|PASSPHRASE|PASSCODE|(?:^|_|SSH|DB|PG|MY)PASS|[A-Z_]PWD"
    r"|(?:^|_)(?:AUTH|AUTHORIZATION|BEARER|COOKIE|JWT|OTP))"
    r"S?\d*(?:_(?:\d+|[A-Z]|DEV|TEST|STAGING|PROD|PRODUCTION|READ|WRITE|NEW|OLD|BACKUP|BASE64))*$"
)
"""Names of variables that hold a secret, as OPENAI_API_KEY, PGPASSWORD or HF_TOKEN_2."""

_NO_SECRETS = {"OLDPWD"}
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"  # C0, C1, bidi, lone
)
_SHORTEST = 8  # a shorter value of such a variable may stand anywhere
_SHORTEST_IN_TEXT = 6
_NO_KEYS = {"EMPTY", "none", "ollama", "lm-studio", "not-needed", "no-key-required", "dummy"}
"""Keys that local servers are given, which take any. Such words may stand in a text."""

_variables: set[str] = set()


def protect(variable: str) -> None:
    """Has `redact` mask the value of this environment variable, whatever its name and length."""
    _variables.add(variable)


def looks_secret(text: str) -> bool:
    """Returns whether a text has the form of an API key or an access token."""
    return _PATTERNS.search(text) is not None or _BEARER.search(text) is not None


def redact(text: str) -> str:
    """Returns the text without what has the form of a secret, and without the values of environment
    variables that are protected or named like a secret, as OPENAI_API_KEY or HF_TOKEN."""
    values = {os.environ.get(variable, "").strip() for variable in _variables} - {""}
    named = (value for name, value in os.environ.items() if _is_secret(name))
    values |= {value for value in named if len(value) >= _SHORTEST}
    text = _USERINFO.sub(rf"\1:{MASK}", _without(text, values))
    return _BEARER.sub(rf"\1{MASK}", _PATTERNS.sub(MASK, text))


def mask_keys(text: str) -> str:
    """Returns a model's text without the values of protected variables. The rest stays as it is:
    what only looks like a secret may be what the text is about."""
    values = {os.environ.get(variable, "").strip() for variable in _variables} - _NO_KEYS
    return _without(text, {value for value in values if len(value) >= _SHORTEST_IN_TEXT})


def _is_secret(variable: str) -> bool:
    return _NAMES.search(variable) is not None and variable not in _NO_SECRETS


def _without(text: str, values: set[str]) -> str:
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def printable(text: str) -> str:
    """Returns text that cannot move the cursor or reorder the text around it."""
    return _UNPRINTABLE.sub("\ufffd", text)


def markdown_code(text: str) -> str:
    """Returns text as Markdown code that ends no cell of a table, without secrets."""
    plain = " ".join(redact(text).replace("`", "'").split())
    return f"`{plain}`".replace("|", "\\|")


def redact_logs() -> None:
    """Makes every log record of the process, of libraries too, pass through `redact`."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def make_redacted(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = make(*arguments, **more)
        with contextlib.suppress(TypeError, ValueError):  # a wrong format; logging says so later
            record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info))).rstrip()
        return record

    make_redacted.redacts = True  # pyright: ignore[reportFunctionMemberAccess]
    logging.setLogRecordFactory(make_redacted)

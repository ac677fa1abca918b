"""What an error of an API says, and what follows from it: for this prompt, or for every request.

Servers put their words in many places: `message`, `type`, `code` or `error` at the top, inside of
`error`, in a list, in `metadata` or `detail`. All are read. The first rule that fits decides:

| the error | what follows |
|---|---|
| its words are about money, a key or the model | END: other requests would fail as well |
| 401, 402, 407 and 3xx | END |
| 408, 409, 425, 429, 499, 5xx | RETRY |
| its words are about the prompt (too long, filtered), or 413 | PROMPT: only it is refused |
| 404, 405 and 410 | END |
| any other 4xx | DOUBT: if other prompts are answered, only this prompt is refused |
"""

import enum
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gad_jax.base.redaction import printable, redact

RETRIED = {408, 409, 425, 429, 499}
_ENDING = {401, 402, 407}
_NOT_THERE = {404, 405, 410}
_DEPTH, _MOST_WORDS = 6, 12

_CODES = ("code", "type", "status", "error_type", "error_code", "reason", "reasons", "status_code")
_MESSAGES = ("message", "msg", "error", "error_msg", "detail", "error_description", "raw")
_INSIDE = ("error", "errors", "innererror", "inner_error", "metadata", "detail", "details", "fault")
_NO_CODES = {"", "error", "none", "null", "apierror", "api_error"}

_PROMPT_CODES = re.compile(
    r"context.?(?:length|size|window)|string_above_max|too_?(?:long|large)|content.?(?:filter|policy)"
    r"|content_?blocked|invalid_prompt|data.?inspection|responsible.?ai|moderation|safety|flagged"
    r"|prompt_?(?:blocked|rejected)|policy.?violation|blocked_?prompt|prohibited|recitation"
    r"|risk_?control|sensitive|^1301$"
)
_PROMPT_WORDS = re.compile(
    r"context (?:length|size|window)|(?:prompt|input|inputs|request|message|messages|content|text)"
    r"[^.]{0,60}(?:too (?:long|large)|exceed|must be <=|longer than|over the limit)"
    r"|(?:exceed|longer than)[^.]{0,60}(?:context|prompt|input|sequence)|reduce the length"
    r"|too many (?:input )?tokens|token count|content (?:filter|management|moderation|safety)"
    r"|content exists risk|inappropriate|flagged|moderation|safety (?:system|filter|polic|reason)"
    r"|sensitive|harmful|prohibited|jailbreak|recitation|usage polic|content[^.]{0,40}polic"
    r"|(?:prompt|input|content)[^.]{0,40}(?:blocked|filtered|rejected|refused|violat|unsafe)"
    r"|敏感|不安全|违规|风险|违反|审核"
)
_RUN_CODES = re.compile(
    r"quota|billing|balance|credit|arrear|overdue|payment|api.?key|authenti|unauthori[sz]"
    r"|permission|access.?(?:denied|terminated)|deactivated|suspended"
    r"|model.?(?:not|does|is|un)|(?:unknown|invalid|unsupported|no_?such).?model|deployment.?not"
    r"|unsupported.?country|unsupported.?parameter|unknown.?parameter|^1113$"
)
_RUN_WORDS = re.compile(
    r"insufficient[^.]{0,20}(?:quota|balance|fund|credit)|credit balance|(?:out of|enough) credits"
    r"|billing|in arrears|overdue|(?:invalid|incorrect|missing|wrong|no|expired)[^.]{0,12}api.?key"
    r"|api.?key[^.]{0,30}(?:invalid|not valid|incorrect|expired|missing|wrong|disabled|revoked)"
    r"|authenticat|unauthori[sz]ed|account[^.]{0,30}(?:deactivated|suspended|disabled|overdue)"
    r"|(?:model|deployment|engine)\b[^.]{0,80}(?:does not exist|not exist|not found|no access)"
    r"|(?:unknown|no such|invalid|unsupported) model|not a valid model"
    r"|country, region|region[^.]{0,20}not supported|余额|欠费|模型不存在"
)
_RATE = re.compile(r"rate.?limit|too.?many.?requests|throttl")
_PASSING = re.compile(
    r"overload|unavailable|time.?out|internal|server.?error"
    r"|capacity|busy|temporar|try again"
)
_QUOTA = re.compile(r"insufficient|billing|credit|balance|arrear|exceeded_current_quota|^1113$")


class Follows(enum.Enum):
    """What follows from an error: see the module's table."""

    RETRY = enum.auto()
    PROMPT = enum.auto()
    DOUBT = enum.auto()
    END = enum.auto()


class Failure(NamedTuple):
    """The codes of an error response, with blanks between them, and its message; both may be empty.
    Not redacted: `words` is for people and files."""

    code: str
    message: str

    @property
    def words(self) -> str:
        """The message, or else the codes, as they may be shown and stored."""
        return said(self.message or self.code)

    @property
    def quota_is_used_up(self) -> bool:
        """Whether a 429 is no rate limit, so that waiting does not help. Only its codes tell:
        the messages of rate limits speak of quotas too."""
        return any(_QUOTA.search(code) for code in self.code.casefold().split())

    def follows(self, status: int) -> Follows:
        """Returns what follows from this error with that status."""
        codes, message = self.code.casefold().split(), self.message.casefold()
        about_prompt = any(map(_PROMPT_CODES.search, codes))
        if status in _ENDING or 300 <= status < 400:
            return Follows.END
        if status == 0 and not about_prompt:  # a batch ended before it came to this request
            return Follows.RETRY
        if status in RETRIED or status >= 500:
            return Follows.END if status == 429 and self.quota_is_used_up else Follows.RETRY
        if not about_prompt and (any(map(_RUN_CODES.search, codes)) or _RUN_WORDS.search(message)):
            return Follows.END
        if about_prompt or status == 413 or _PROMPT_WORDS.search(message):
            return Follows.PROMPT
        return Follows.END if status in _NOT_THERE else Follows.DOUBT

    @property
    def status(self) -> int:
        """The status that a server should have sent with this error, which came with 200."""
        codes, message = self.code.casefold().split(), self.message.casefold()
        numbers = [int(code) for code in codes if re.fullmatch("[45][0-9]{2}", code)]
        if numbers:
            return numbers[0]
        if any(map(_RATE.search, codes)):
            return 429
        if any(map(_PASSING.search, codes)):
            return 500
        if self.follows(400) is not Follows.DOUBT:
            return 400
        return 400 if "invalid_request" in self.code and not _PASSING.search(message) else 500


def said(text: str) -> str:
    """Returns a server's words as they may be shown and stored: one line, without secrets or codes
    that steer a terminal, at most 300 characters."""
    return printable(redact(" ".join(text.split())))[:300]


def failure_in(value: Any) -> Failure:
    """Returns what an error's body says, given as a JSON value."""
    codes, messages = [], []
    for kind, text in _walk(value, 0):
        (codes if kind == "code" else messages).append(text)
    first = dict.fromkeys(code for code in codes if code.casefold() not in _NO_CODES)
    return Failure(
        " ".join(list(first)[:_MOST_WORDS]), "; ".join(list(dict.fromkeys(messages))[:_MOST_WORDS])
    )


def find_failure(fields: Mapping[str, Any]) -> Failure | None:
    """Returns the error that a reply or a choice reports, None if it reports none."""
    for name in ("error", "errors"):
        if fields.get(name):
            return failure_in({"error": fields[name]})
    is_error = str(fields.get("object", fields.get("type", ""))).casefold() == "error"
    bare = "choices" not in fields and (
        "message" in fields or "code" in fields or "detail" in fields
    )
    if is_error or (bare and isinstance(fields.get("message", fields.get("detail", "")), str)):
        return failure_in(fields)
    return None


def _walk(value: Any, depth: int) -> Iterator[tuple[str, str]]:
    """Yields the codes and messages of an error, those inside of `error` first."""
    if depth > _DEPTH:
        return
    if isinstance(value, list):
        for part in value[:_MOST_WORDS]:
            yield from _walk(part, depth + 1)
    elif isinstance(value, str):
        if depth and value.strip():
            yield "message", value
    elif isinstance(value, dict):
        for name in _INSIDE:
            if isinstance(value.get(name), dict | list):
                yield from _walk(value[name], depth + 1)
        for name in _CODES:
            given = value.get(name)
            for code in given if isinstance(given, list) else [given]:
                if isinstance(code, str | int) and not isinstance(code, bool):
                    yield "code", "_".join(str(code).split())
        for name in _MESSAGES:
            if isinstance(value.get(name), str) and value[name].strip():
                yield "message", value[name]

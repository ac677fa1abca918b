"""How an answer becomes tokens after its prompt: those of the template's own text."""

from dataclasses import dataclass

from gad_jax.data.encoding import Encoder, Form
from gad_jax.data.turns import ANSWER, Turn

_PROBES = (ANSWER["content"], "Yes, 3.5.", "안녕")


@dataclass(frozen=True)
class Framing:
    """How an answer becomes tokens after its prompt: tokens before it, text before and after it.

    `shown` is how the text of such tokens begins.
    """

    lead: list[int]
    lead_text: str
    form: Form
    tail: str
    shown: str


def find(encoder: Encoder, prompt: str, turn: Turn, end: str, closed: bool) -> Framing:
    """Returns the framing for answers that follow `prompt`, as the template renders it.

    `end` is the spelling of the end token; `closed` says that the prompt's thought is closed
    before. Where no way gives the tokens of the template's own text, an answer is
    encoded as a text of its own.
    """
    opened = [] if closed else encoder.added(prompt, turn.closing) or []
    prompt += turn.closing
    lead, text, form = _way(encoder, prompt, turn.lead)
    tail = turn.tail if turn.after.startswith(end) else ""
    return Framing(opened + lead, text, form, tail, text or encoder.decode(lead))


def _way(encoder: Encoder, prompt: str, lead: str) -> tuple[list[int], str, Form]:
    """Returns the tokens before an answer, the text before it, and the form of both."""
    marked = encoder.added(prompt, lead) or encoder.encode([lead])[0]
    ways: list[tuple[list[int], str, Form]] = [(marked, "", "plain"), (marked, "", "after newline")]
    if lead and not lead.strip():
        blank: list[tuple[list[int], str, Form]] = [
            ([], lead, "plain"),
            ([], lead, "after newline"),
            ([], "", "plain"),  # SentencePiece puts the space itself
        ]
        ways = blank + ways
    wanted = [encoder.added(prompt, lead + probe) for probe in _PROBES]
    for first, text, form in ways:
        answers = encoder.continuation([text + probe for probe in _PROBES], form)
        if [first + answer for answer in answers] == wanted:
            return first, text, form
    return ways[0] if lead.strip() else ([], "", "plain")

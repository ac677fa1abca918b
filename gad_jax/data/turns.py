"""What a chat template writes around an assistant's answer, found out with a probe conversation.

Tokens are in `chat.py`, the tags of thoughts in `thoughts.py`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gad_jax.base.errors import UserError
from gad_jax.data import thoughts
from gad_jax.data.template import Message, Template

QUESTION = {"role": "user", "content": "gad-probe-question"}
ANSWER = {"role": "assistant", "content": "gad-probe-answer"}

_LEFT, _RIGHT = "\n\n  ", "  \n\n"
_STRIPS: dict[str, Callable[[str], str]] = {
    "": str,
    "lstrip": str.lstrip,
    "lstrip newlines": lambda text: text.lstrip("\n"),
    "rstrip": str.rstrip,
    "rstrip newlines": lambda text: text.rstrip("\n"),
}
_ARGUMENTS = re.compile(r"(?i)think|reason")


@dataclass(frozen=True)
class Turn:
    """What stands before and after an answer in a row that the template renders.

    `opens` is the tag of the thought in which the prompt ends, and `closing` what closes it;
    `closed` is True for a prompt that ends in a closed thought. `lead` stands between the prompt,
    or that closing, and the answer. `tail` are the blanks after the answer, and `after` is what
    follows them. `strips` names what the template removes from both ends of an answer.
    """

    opens: str = ""
    closing: str = ""
    lead: str = ""
    tail: str = ""
    after: str = ""
    strips: tuple[str, ...] = ()
    closed: bool = False

    def strip(self, answer: str) -> str:
        """Returns an answer as the template writes it."""
        for name in self.strips:
            answer = _STRIPS[name](answer)
        return answer


def probe(template: Template) -> Turn:
    """Returns what the template writes around an answer.

    Raises UserError when it loses the user's text, when nothing opens the assistant's turn, or when
    an answered turn does not begin as the prompt does.
    """
    prompt = template.render([QUESTION], True)
    _, question, header = prompt.rpartition(QUESTION["content"])
    if not question:
        raise UserError(
            f"{template.directory}: the chat template drops the user's text; use the model's own "
            "template"
        )
    opens = thoughts.open_tag(header)
    whole = _render(template, [QUESTION, ANSWER])
    before, answer, after = (whole or "").partition(ANSWER["content"])
    if not answer:
        _check_opened(template, prompt, prompted=False)
        closing = thoughts.closing_text(header) if opens else ""
        return Turn(opens, closing, closed=thoughts.ends_closed(header))
    closing, lead = _between(template, prompt, header, before)
    thinks = thoughts.last_start(header) >= 0
    _check_opened(template, prompt, prompted=thinks or not (closing + lead).strip())
    if not opens:
        closing, lead = "", closing + lead
    rest = after.lstrip()
    tail = after.removesuffix(rest)
    strips = _strips(template, before, after)
    if opens:  # blanks between a thought and its answer are no part of either
        strips = ("lstrip", *(name for name in strips if name.startswith("rstrip")))
    return Turn(opens, closing, lead, tail, rest, strips, thoughts.ends_closed(header))


def with_empty_thought(turn: Turn, template: Template) -> Turn:
    """Returns the turn with the empty thought that the template writes before an answer as the end
    of the prompt: the row is the same, and the student only answers.

    Not where an argument of the template says how the student is to think.
    """
    given = any(map(_ARGUMENTS.search, template.arguments))
    if turn.opens or given or not thoughts.ends_closed(turn.lead):
        return turn
    return dataclasses.replace(turn, closing=turn.lead, lead="")


def closing_argument(template: Template) -> tuple[str, str] | None:
    """Returns the argument of the template, and its value, with which a model is not to think.

    None where there is no such argument, or where it is given.
    """
    for name in template.reads:
        if name in template.arguments or not _ARGUMENTS.search(name):
            continue
        for value in (False, True):
            other = template.with_arguments(template.arguments | {name: value})
            try:
                prompt = other.render([QUESTION], True)
            except UserError:
                continue
            if thoughts.ends_closed(prompt):
                return name, str(value).lower()
    return None


def _render(template: Template, messages: Sequence[Message]) -> str | None:
    try:
        return template.render(messages, False)
    except UserError:  # some templates want the user to speak last
        return None


def _check_opened(template: Template, prompt: str, prompted: bool) -> None:
    # No header to add is right when the answer follows the user's turn at once, as in
    # "[INST] question [/INST] answer".
    if not prompted and prompt == template.render([QUESTION], False):
        raise UserError(
            f"{template.directory}: the chat template ignores add_generation_prompt, so nothing "
            "opens the assistant's turn; use the model's own template"
        )


def _between(template: Template, prompt: str, header: str, before: str) -> tuple[str, str]:
    """Returns what closes the prompt's thought, and what else stands between it and an answer."""
    if before.startswith(prompt):
        found = before[len(prompt) :]
        if thoughts.ends_closed(found):
            return found, ""
        return (thoughts.closing_text(header) if thoughts.open_tag(header) else ""), found
    # Many templates leave out of an answered turn the thought that they put into the prompt, or
    # write an empty one in another form.
    start = thoughts.last_start(header)
    head = prompt[: len(prompt) - len(header) + start] if start >= 0 else prompt
    if before.rstrip().startswith(head.rstrip()):
        thought, lead = thoughts.empty_thought(before[len(head.rstrip()) :])
        if not thoughts.open_tag(header):
            return "", lead
        return thoughts.closing_part(thought) or thoughts.closing_text(header), lead
    equal = next(
        (n for n, (a, b) in enumerate(zip(prompt, before, strict=False)) if a != b), len(before)
    )
    raise UserError(
        f"{template.directory}: the chat template writes an answered turn otherwise than its "
        f"prompt ({before[equal:][:40]!r} in place of {prompt[equal:][:40]!r}), so no answer "
        "follows the prompt; correct the template"
    )


def _strips(template: Template, before: str, after: str) -> tuple[str, ...]:
    """Returns what the template removes from the ends of an answer; () if that is not clear."""
    padded = {**ANSWER, "content": f"{_LEFT}{ANSWER['content']}{_RIGHT}"}
    whole = _render(template, [QUESTION, padded]) or ""
    left, answer, right = whole.partition(ANSWER["content"])
    if not answer or not left.startswith(before) or not right.endswith(after):
        return ()
    left, right = left[len(before) :], right[: len(right) - len(after)]
    found = (
        next((name for name in ("", *list(_STRIPS)[1:3]) if _STRIPS[name](_LEFT) == left), None),
        next((name for name in ("", *list(_STRIPS)[3:]) if _STRIPS[name](_RIGHT) == right), None),
    )
    return () if None in found else tuple(name for name in found if name)

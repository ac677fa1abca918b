"""Thoughts of thinking models, kept apart from their answers.

A thought stands before the answer, between tags such as <think> and </think>. The tags of public
models are listed here; what a chat template writes around a turn is probed in `turns.py`.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_WORDS = "think|thinking|thought|thoughts|reason|reasoning|inner_monologue|scratchpad"
_NAME = rf"(?:\w{{1,24}}[:_])?(?:{_WORDS})(?:[:_]\w{{1,24}})?"

_THOUGHTS: tuple[tuple[str, str], ...] = (
    # Qwen3, DeepSeek-R1, SmolLM3, GLM, EXAONE; <seed:think> of Seed-OSS, <mm:think> of MiniMax
    (rf"<(?P<name>{_NAME})>", r"</{name}>"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"◁think▷", r"◁/think▷"),  # Kimi-VL
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"<\|think\|>", r"<\|/think\|>"),
    (r"<unused94>thought", r"<unused95>"),  # MedGemma
    (r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
    (r"Here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]"),  # Apriel
    (
        r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)[^<]{0,60}<\|message\|>",
        r"<\|(?:end|call|return)\|>",
    ),  # gpt-oss
)
"""How a thought begins and ends; `{name}` is the name in the opening tag."""

_ANSWERS: tuple[tuple[str, str], ...] = (
    (r"(?:<\|start\|>assistant)?<\|channel\|>final[^<]{0,60}<\|message\|>", ""),
    (r"<\|START_RESPONSE\|>", r"<\|END_RESPONSE\|>"),
    (r"<\|begin_of_solution\|>", r"<\|end_of_solution\|>"),
    (r"\[BEGIN FINAL RESPONSE\]", r"\[END FINAL RESPONSE\]"),
    (r"<(?P<wrap>answer|response|output|solution|final_answer)>", r"</{wrap}>"),
)
"""What some models write around the answer. The last kind counts only after a thought: without one
it is text."""

_GRANITE = re.compile(
    r"\s*Here(?:'s| is) my thought process:(.*?)Here(?:'s| is) my response:(.*)", re.DOTALL
)
"""Granite 3.2 marks its thought with sentences; they count only where both are there."""

_QUOTES = "`'\"“”‘’«»"

SPECIAL = re.compile(
    r"(?i)<\|(?:channel|message|start|end|call|think|/think|inner_prefix|inner_suffix"
    r"|(?:begin|end)_of_(?:thought|solution)|(?:START|END)_(?:THINKING|RESPONSE))\|>"
    rf"|\[/?THINK\]|◁/?think▷|<unused9[45]>|<\|channel>|<channel\|>|</?{_NAME}>"
)
"""The tokens that mark thoughts; decoding must show them even if they are special ones."""


_OPENED = {
    "[/THINK]": "[THINK]",
    "◁/THINK▷": "◁think▷",
    "<|END_OF_THOUGHT|>": "<|begin_of_thought|>",
    "<|END_THINKING|>": "<|START_THINKING|>",
    "<|INNER_SUFFIX|>": "<|inner_prefix|>",
    "<|/THINK|>": "<|think|>",
    "<UNUSED95>": "<unused94>thought",
    "<CHANNEL|>": "<|channel>thought",
}
"""The opening tags of closing ones that are not </…>."""

_CLOSERS = ("</", "[/", "◁/", "<|", "95>", "|>")
_LONE = re.compile(
    rf"(?i)(?<![{_QUOTES}])(?:</(?P<name>{_NAME})>|{'|'.join(map(re.escape, _OPENED))})"
    rf"(?![{_QUOTES}])"
)

_CLOSED = re.compile(
    rf"(?i)(?:</{_NAME}>|\[/THINK\]|◁/think▷|<\|(?:END_THINKING|inner_suffix|/think)\|>"
    r"|<channel\|>|<unused95>)\s*\Z"
)


_EMPTY = re.compile(
    rf"(?i)\s*(?:<{_NAME}>\s*)?</{_NAME}>\s*|\s*(?:\[THINK\]\s*)?\[/THINK\]\s*"
    r"|\s*(?:<\|START_THINKING\|>)?<\|END_THINKING\|>\s*"
)


class Parts(NamedTuple):
    """A text in two parts; `finished` is False if it ends inside a thought."""

    thoughts: str
    answer: str
    finished: bool = True


class Splitter:
    """Parts a text that grows: `push` and `end` return what is new of thoughts and answer.

    What may be the beginning of a tag is held back until it is known, and so are the blanks around
    a thought. `inside` is the tag of a thought that the prompt has opened.
    """

    def __init__(self, inside: str = "") -> None:
        self._held = ""
        self._state = "thought" if inside else "start"
        self._close: Any = _closing(inside) if inside else None  # of the thought or wrapper
        self._repeated = inside  # some models write again what their prompt ends in
        self._after_thought = False
        self._begun = False  # whether the thought or the wrapped answer has text yet
        self._unwrapped = False  # whether what wrapped the answer has ended

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside a thought."""
        return self._state == "thought"

    def push(self, text: str) -> Parts:
        """Returns what the text adds."""
        self._held += text
        return self._advance(last=False)

    def end(self) -> Parts:
        """Returns what was held back."""
        return self._advance(last=True)

    def _advance(self, last: bool) -> Parts:
        thoughts, answer = "", ""
        while True:
            before = (self._state, self._held)
            if self._state == "start":
                answer += self._start(last)
            elif self._state == "thought":
                thoughts += self._inside(last)
            else:
                answer += self._wrapped() if self._close else self._rest()
            if (self._state, self._held) == before:
                break
        if last:
            answer += self._rest() if self._state == "answer" else ""
            self._held = ""
        return Parts(thoughts, answer, not self.thinking)

    def _start(self, last: bool) -> str:
        """Decides what the text begins with; returns it if that is plain text."""
        text = self._held.lstrip()
        found = _opening(self._after_thought).match(text, partial=not last)
        if found and found.partial:
            return ""
        self._begun = False
        if found:
            self._state, self._close = _kind(found)
            self._held = text[found.end() :]
            return ""
        self._state, self._close = "answer", None
        if self._after_thought:
            self._held = text
        return self._rest()

    def _inside(self, last: bool) -> str:
        """Returns the part of the thought that is known to be one."""
        text = self._held if self._begun else self._held.lstrip()
        if self._repeated and text.startswith(self._repeated):
            text = text[len(self._repeated) :].lstrip()
            self._repeated = ""
        elif self._repeated.startswith(text) and not last:
            return ""  # also where there is no text yet
        lead = "\n\n" if self._after_thought and not self._begun else ""
        said = self._until_close(text)
        if self._close is None:
            self._state, self._after_thought = "start", True
        return lead + said if said else ""

    def _wrapped(self) -> str:
        return self._until_close(self._held if self._begun else self._held.lstrip())

    def _until_close(self, text: str) -> str:
        """Returns what stands before the closing tag, and holds the rest; `_close` is None then."""
        found = self._close.search(text, partial=True)
        said = text[: found.start() if found else len(text)].rstrip()
        if found and not found.partial:
            self._held, self._close = text[found.end() :], None
            self._unwrapped = self._state == "answer"
        else:
            self._held = text[len(said) :]
        self._begun = self._begun or said != ""
        return said

    def _rest(self) -> str:
        if self._unwrapped and not self._held.strip():
            return ""
        text, self._held = self._held, ""
        return text


def split(text: str, inside: str = "") -> Parts:
    """Returns thoughts and answer of a whole text. A text without tags is all answer, unchanged.

    Example: "<think>\\n2 + 2\\n</think>\\n\\n4" → ("2 + 2", "4"). `inside` is the tag of a thought
    that the prompt has opened. A text that ends inside a thought has no answer.
    """
    phrases = _GRANITE.match(text)
    if phrases and not inside:
        return Parts(phrases[1].strip(), phrases[2].strip())
    splitter = Splitter(inside)
    first = splitter.push(text)
    rest = splitter.end()
    return Parts(first.thoughts + rest.thoughts, first.answer + rest.answer, rest.finished)


def split_teacher(text: str) -> Parts:
    """Returns thoughts and answer of a teacher's text, of which the prompt is not known.

    Where the API's prompt opened the thought, the text has the closing tag alone: what stands
    before it is the thought. A closing tag in quotes is text.
    """
    if not _opening().match(text.lstrip()):
        may = any(part in text for part in _CLOSERS)  # quicker than the pattern
        found = _LONE.search(text) if may else None
        if found:
            tag = f"<{found['name']}>" if found["name"] else _OPENED[found[0].upper()]
            return split(text, tag)
    return split(text)


def open_tag(text: str) -> str:
    """Returns the tag of the thought in which a text ends; empty if it ends in none."""
    last = None
    for found in _opening(thoughts_alone=True).finditer(text):
        last = found
    if last is None or _kind(last)[1].search(text, last.end()):
        return ""
    return last[0]


def last_start(text: str) -> int:
    """Returns where the last thought of a text begins, or its closing tag alone; -1: nowhere."""
    starts = [found.start() for found in _opening(thoughts_alone=True).finditer(text)]
    closed = _CLOSED.search(text)
    return starts[-1] if starts else (closed.start() if closed else -1)


def empty_thought(text: str) -> tuple[str, str]:
    """Returns the thought without text with which a text begins, and the rest without blanks.

    Example: "<think></think>Yes" → ("<think></think>", "Yes"); also "</think>Yes".
    """
    found = _EMPTY.match(text)
    return (found[0], text[found.end() :].strip()) if found else ("", text.strip())


def closing_part(thought: str) -> str:
    """Returns an empty thought from its closing tag on, with the blanks after it."""
    found = _CLOSED.search(thought)
    return thought[found.start() :] if found else ""


def ends_closed(text: str) -> bool:
    """Returns whether a text ends in a thought that is closed, as the prompts of models do that are
    not to think."""
    return _CLOSED.search(text) is not None


def closing_text(prompt: str) -> str:
    """Returns what closes the thought in which a prompt ends, so that the answer can follow.

    Example: "…<think>\\n" → "\\n</think>\\n\\n", the form of Qwen3's empty thought.
    """
    tag = open_tag(prompt)
    close = _close_pattern(_opening().match(tag)).replace("\\", "")
    if "end|call" in close:
        return "<|end|><|start|>assistant<|channel|>final<|message|>"
    if not close.startswith("</"):
        return close
    newline = "" if prompt.endswith("\n") else "\n"
    return f"{newline}\n{close}\n\n"


def frame(tag: str, template: str) -> tuple[str, str]:
    """Returns what a model writes before and after its thoughts, by the tag or else the template.

    Example: ("<think>\\n", "\\n</think>\\n\\n"). A template that names no tag has <think>.
    """
    found = _opening(thoughts_alone=True).search(template)
    tag = tag or (found[0] if found else "<think>")
    close = closing_text(tag)
    return (f"{tag}\n", close.removeprefix("\n")) if close.startswith("\n") else (tag, close)


def _kind(found: Any) -> tuple[str, Any]:
    """Returns the state that an opening tag leads to, and the pattern of its closing tag."""
    import regex

    close = _close_pattern(found)
    state = "thought" if found.lastgroup.startswith("t") else "answer"
    return state, regex.compile(f"(?i){close}") if close else None


def _close_pattern(found: Any) -> str:
    table = _THOUGHTS if found.lastgroup.startswith("t") else _ANSWERS
    close = table[int(found.lastgroup[1:])][1]
    return close.format(**found.groupdict()) if "{" in close else close


def _closing(tag: str) -> Any:
    return _kind(_opening().match(tag))[1]


@functools.cache
def _opening(after_thought: bool = False, thoughts_alone: bool = False) -> Any:
    """Returns the pattern of what may stand at the beginning."""
    import regex  # the standard library's knows no partial matches

    answers: Sequence[tuple[str, str]] = _ANSWERS if after_thought else _ANSWERS[:-1]
    if thoughts_alone:
        answers = ()
    options = [f"(?P<t{n}>{pattern})" for n, (pattern, _) in enumerate(_THOUGHTS)]
    options += [f"(?P<a{n}>{pattern})" for n, (pattern, _) in enumerate(answers)]
    return regex.compile(f"(?i)(?:{'|'.join(options)})")

"""Tokenizer, chat template and end tokens of a Hugging Face directory.

They are read once, when `chat.Chat` is loaded. Encoding is in `chat.py`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError, first_line

Message = Mapping[str, str]
"""One turn of a conversation: {"role": …, "content": …}."""

Render = Callable[[Sequence[Message], bool], str]
"""(messages, generation_prompt) → the chat template's text."""

# Some templates write today's date. A prompt has to be the same tomorrow, or a resumed run would
# see other tokens; this is the date that Llama 3.1's own template falls back to.
_FIXED_DATE = "{%- macro strftime_now(format) %}26 Jul 2024{%- endmacro %}\n"

_QUESTION = {"role": "user", "content": "gad-probe-question"}
_ANSWER = {"role": "assistant", "content": "gad-probe-answer"}


@dataclass(frozen=True)
class Control:
    """A token that steers the conversation, and whether it removes the blanks next to it."""

    token: int
    lstrip: bool
    rstrip: bool


def load_tokenizer(directory: str | Path) -> Any:
    """Returns the directory's tokenizer; reads local files only and runs no code of it."""
    if not Path(directory).is_dir():
        raise UserError(f"{directory}: no such directory; give a downloaded Hugging Face model")
    # It warns when torch is not installed, and torch is not needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # as many kinds as there are tokenizer formats
        raise UserError(
            f"{directory}: the tokenizer cannot be loaded ({first_line(error)}); the directory "
            "needs the model's tokenizer.json and tokenizer_config.json"
        ) from error


def read_chat_template(directory: str | Path, tokenizer: Any) -> str:
    """Returns the tokenizer's chat template, dates fixed."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            f"{directory}: the tokenizer has no chat template; use an instruct model or add its "
            "chat_template.jinja to the directory"
        ) from error
    return _FIXED_DATE + template if "strftime_now" in template else template


def render(
    directory: str | Path,
    tokenizer: Any,
    chat_template: str,
    messages: Sequence[Message],
    generation_prompt: bool,
) -> str:
    """Returns the chat template's text of a conversation, in transformers' sandbox."""
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
    except Exception as error:  # a template is a program: it may raise anything
        raise UserError(
            f"{directory}: the chat template refuses the conversation ({first_line(error)}); "
            "change the messages or the template"
        ) from error


def check_template(directory: str | Path, render: Render) -> None:
    """Raises UserError when the template loses the user's text or leaves the answer unopened."""
    prompt = render([_QUESTION], True)
    if _QUESTION["content"] not in prompt:
        raise UserError(
            f"{directory}: the chat template drops the user's text; use the model's own template"
        )
    if prompt != render([_QUESTION], False):
        return
    # No header to add is right when the answer follows the user's turn at once, as in
    # "[INST] question [/INST] answer".
    whole = render([_QUESTION, _ANSWER], False)
    between, answer, _ = whole.removeprefix(prompt).partition(_ANSWER["content"])
    if not whole.startswith(prompt) or between.strip() or not answer:
        raise UserError(
            f"{directory}: the chat template ignores add_generation_prompt, so nothing opens the "
            "assistant's turn; use the model's own template"
        )


def read_end_tokens(directory: str | Path, tokenizer: Any) -> tuple[int, ...]:
    """Returns the ids that the model's files call end of sequence, without duplicates."""
    configured = None
    for name in ("generation_config.json", "config.json"):
        path = Path(directory) / name
        if not path.is_file():
            continue
        try:
            configured = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: not a JSON object; download the file again") from error
        break  # config.json speaks only where there is no generation_config.json
    listed = configured if isinstance(configured, list) else [configured]
    tokens = [token for token in [*listed, tokenizer.eos_token_id] if token is not None]
    if not all(type(token) is int and token >= 0 for token in tokens):
        raise UserError(
            f"{directory}: eos_token_id={configured!r} must be a token id or a list of them"
        )
    return tuple(dict.fromkeys(tokens))


def find_end_token(
    directory: str | Path, tokenizer: Any, render: Render, end_tokens: Sequence[int]
) -> int:
    """Returns the token with which the template closes an assistant turn, else the tokenizer's eos.

    It is the token after the answer of a probe conversation. It need not be in `end_tokens`: those
    of a base tokenizer with a ChatML template end texts, not turns.
    """
    texts = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items()}
    longest_first = sorted(texts, key=lambda token: len(texts[token]), reverse=True)

    def token_after_answer(messages: list[Message], candidates: Sequence[int]) -> int | None:
        after = render(messages, False).partition(_ANSWER["content"])[2].lstrip()
        return next((token for token in candidates if after.startswith(texts[token])), None)

    found = token_after_answer([_QUESTION, _ANSWER], longest_first)
    if found is None:  # the next turn's header may close a turn, as GLM's <|user|> does
        known = [token for token in longest_first if token in end_tokens]
        found = token_after_answer([_QUESTION, _ANSWER, _QUESTION], known)
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        raise UserError(
            f"{directory}: neither the chat template nor the tokenizer names an end token; set "
            "eos_token in tokenizer_config.json"
        )
    return found


def make_special(directory: str | Path, tokenizer: Any, tokens: Sequence[int]) -> None:
    """Marks end tokens as special if they are not, so that their spelling in a text stays text.

    Raises UserError when the tokenizer still reads the spelling as the token.
    """
    added = tokenizer.added_tokens_decoder
    for token in tokens:
        text = added[token].content if token in added else tokenizer.convert_ids_to_tokens(token)
        if text is None:  # an id of the model's padded vocabulary, without a text
            continue
        if token in added and not added[token].special:
            from transformers import AddedToken

            special = AddedToken(text, special=True, normalized=False)
            tokenizer.add_tokens([special], special_tokens=True)
        literal = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        if token in literal["input_ids"]:
            raise UserError(
                f"{directory}: the tokenizer reads the text {text!r} as end token {token}; "
                "make it a special added token in tokenizer.json"
            )


def control_tokens(tokenizer: Any) -> dict[str, Control]:
    """Returns the special tokens by their spelling."""
    return {
        entry.content: Control(token, bool(entry.lstrip), bool(entry.rstrip))
        for token, entry in tokenizer.added_tokens_decoder.items()
        if entry.special and entry.content
    }

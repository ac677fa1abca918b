"""Tokenizer, chat template and end tokens of a Hugging Face directory.

They are read once, when `chat.Chat` is loaded. Encoding is in `chat.py`.
"""

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError, first_line
from gad_jax.data import tokenizer_file
from gad_jax.data.template import Message, Template
from gad_jax.data.turns import ANSWER, QUESTION


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

    _need_sentencepiece(Path(directory))
    tokenizer_file.check(Path(directory) / "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        tokenizer("A first text.")  # some damage shows only when it is used
        return tokenizer
    except BaseException as error:  # as many kinds as there are tokenizer formats
        # A panic of the tokenizer's Rust code is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{directory}: the tokenizer cannot be loaded ({first_line(error)}); the directory "
            "needs the model's tokenizer.json and tokenizer_config.json"
        ) from error


def _need_sentencepiece(directory: Path) -> None:
    """Raises UserError where only the library can read the tokenizer, and it is not installed."""
    present = {path.name for path in directory.iterdir()}
    alone = "tokenizer.model" in present and "tokenizer.json" not in present
    if alone and importlib.util.find_spec("sentencepiece") is None:
        raise UserError(
            f"{directory}: tokenizer.model without tokenizer.json needs sentencepiece; run "
            "`pip install sentencepiece protobuf`, or add the model's tokenizer.json"
        )


def read_chat_template(directory: str | Path, tokenizer: Any) -> str:
    """Returns the directory's chat template; `default` where it has several."""
    if tokenizer.chat_template is None:
        found = _from_processor(Path(directory) / "chat_template.json")
        if found is not None:
            return found
    elif isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise UserError(
            f"{directory}: none of its chat templates ({', '.join(tokenizer.chat_template)}) is "
            "called default; write the one to use into chat_template.jinja"
        )
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            f"{directory}: the tokenizer has no chat template; use an instruct model or add its "
            "chat_template.jinja to the directory"
        ) from error


def _from_processor(path: Path) -> str | None:
    """Returns the template in chat_template.json, which models with a processor have."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found = found["chat_template"] if isinstance(found, dict) else found
    except (ValueError, KeyError, RecursionError):
        found = None
    if not isinstance(found, str):
        raise UserError(
            f"{path}: it has no text under chat_template; download the file again or write "
            "chat_template.jinja"
        )
    return found


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


def find_end_token(template: Template, tokenizer: Any, end_tokens: Sequence[int]) -> int:
    """Returns the token with which the template closes an assistant turn, else the tokenizer's eos.

    It is the token after the answer of a probe conversation. It need not be in `end_tokens`: those
    of a base tokenizer with a ChatML template end texts, not turns.
    """
    texts = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items()}
    longest_first = sorted(texts, key=lambda token: len(texts[token]), reverse=True)

    def token_after_answer(messages: list[Message], candidates: Sequence[int]) -> int | None:
        try:
            whole = template.render(messages, False)
        except UserError:  # some templates want the user to speak last
            return None
        after = whole.partition(ANSWER["content"])[2].lstrip()
        return next((token for token in candidates if after.startswith(texts[token])), None)

    found = token_after_answer([QUESTION, ANSWER], longest_first)
    if found is None:  # the next turn's header may close a turn, as GLM's <|user|> does
        known = [token for token in longest_first if token in end_tokens]
        found = token_after_answer([QUESTION, ANSWER, QUESTION], known)
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        raise UserError(
            f"{template.directory}: neither the chat template nor the tokenizer names an end "
            "token; set eos_token in tokenizer_config.json"
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

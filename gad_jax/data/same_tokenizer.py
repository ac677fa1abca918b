"""Whether two models read the same token ids: a discriminator of another model must."""

from pathlib import Path
from typing import Any

from gad_jax.data.chat import Chat
from gad_jax.data.tokenizer import load_tokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def difference(chat: Chat, directory: Path) -> str:
    """Returns what a directory's tokenizer reads otherwise than the chat's, in words; '' for
    nothing, and for a directory without a tokenizer.

    Added tokens may differ: models of a family rename and add some. Those that end a response in
    the chat may not.
    """
    if not any((directory / name).is_file() for name in _FILES):
        return ""
    tokenizers = chat.tokenizer, load_tokenizer(directory)
    ours, theirs = map(_texts, tokenizers)
    if len(ours) != len(theirs):
        return f"it has {len(theirs)} tokens, and the student's {len(ours)}"
    other = next((token for token in sorted(ours) if ours[token] != theirs.get(token)), None)
    if other is None:
        added = [_added(tokenizer) for tokenizer in tokenizers]
        ours, theirs = ours | added[0], theirs | added[1]
        ends = sorted({chat.end_token, *chat.end_tokens})
        other = next((t for t in ends if theirs.get(t, ours.get(t)) != ours.get(t)), None)
    if other is None:
        return ""
    return f"token {other} is {theirs.get(other)!r} there, and {ours.get(other)!r} in the student's"


def _added(tokenizer: Any) -> dict[int, str]:
    return {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items()}


def _texts(tokenizer: Any) -> dict[int, str]:
    """Returns the tokens by id, without the added ones."""
    added = _added(tokenizer)
    return {id_: text for text, id_ in tokenizer.get_vocab().items() if id_ not in added}

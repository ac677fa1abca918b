"""An untrained student whose tokens are whole words, for a world with few words."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from gad_jax.models.builtin import untrained
from gad_jax.models.builtin.untrained import Sizes, Special

HEAD_WIDTH = 24
_SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
_VOCABULARY_MULTIPLE = 16

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] + ' <|end|> ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)


def write_student(
    directory: Path, words: Sequence[str], *, layers: int, width: int, seed: int
) -> None:
    """Writes a random Llama as a Hugging Face directory; equal arguments give equal bytes.

    `width` is a multiple of 24, the width of a head; the MLP is three times as wide. Text is split
    at spaces, and a word outside `words` becomes the token `<unknown>`.
    """
    unknown = "<unknown>"
    vocabulary = {word: number for number, word in enumerate([*words, unknown])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    size = tokenizer.get_vocab_size()
    heads = width // HEAD_WIDTH
    sizes = Sizes(
        vocabulary=-(-size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE,
        layers=layers,
        width=width,
        mlp=3 * width,
        heads=heads,
        kv_heads=heads,
        head_width=HEAD_WIDTH,
    )
    special = Special("<|pad|>", "<|end|>", _CHAT_TEMPLATE)
    untrained.write(directory, tokenizer, special, sizes, seed=seed)

"""`random-tiny`: a deterministic random model of 35 thousand parameters, for tests and dry runs.

A complete Hugging Face directory of a real family, with a real byte-level tokenizer and chat
template, so that what works on it works on a released checkpoint of that family.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from gad_jax.base.cache import create_once
from gad_jax.models.builtin import untrained
from gad_jax.models.builtin.untrained import Family, Sizes, Special

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME = "random-tiny"

# The number goes up when what write_tiny makes changes.
_CACHE_NAME = f"{NAME}-2"
# The tokenizer knows 259 ids; padded as in released checkpoints: an id without text can be sampled.
_SIZES = Sizes(vocabulary=512, layers=2, width=32, mlp=64, heads=4, kv_heads=2, head_width=8)
_SPECIAL = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def fetch() -> Path:
    """The cache's `random-tiny` directory: what `write_tiny` makes by default, made once."""
    return create_once(_CACHE_NAME, write_tiny)


def write_tiny(
    directory: Path,
    family: Family = "llama",
    tied: bool = True,
    seed: int = 0,
    num_shards: int = 1,
    llama3_rope: bool = False,
) -> None:
    """Writes a tiny random model as a Hugging Face directory; equal arguments give equal bytes.

    2 layers, width 32, mlp 64, 4 query and 2 key/value heads of 8, float32. Token ids 0 … 255 are
    the bytes of the text, then `<|endoftext|>` (pad), `<|im_start|>` and `<|im_end|>` (eos). With
    `num_shards` > 1 the weights are model-00001-of-0000N.safetensors … and an index. `llama3_rope`
    (llama only) scales RoPE as Llama 3.x does, from 64 positions by 8: of its four frequencies one
    is kept, one interpolated and two divided.

        write_tiny(tmp_path, "qwen3", tied=False)
        AutoTokenizer.from_pretrained(tmp_path).encode("a<|im_end|>")  # [97, 258]
    """
    untrained.write(
        directory,
        _byte_tokenizer(),
        Special("<|endoftext|>", "<|im_end|>", _CHAT_TEMPLATE),
        _SIZES,
        family,
        tied,
        seed,
        num_shards,
        llama3_rope,
    )


def _byte_tokenizer() -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    assert all(tokenizer.token_to_id(token) == token_id for token, token_id in _SPECIAL.items())
    return tokenizer


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's alphabet)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(code) for code in range(0x100, 0x200))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]

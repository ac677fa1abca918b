"""`random-tiny`: a deterministic random model of 35 thousand parameters, for tests and dry runs.

A complete Hugging Face directory of a real family, with a real byte-level tokenizer and chat
template, so that what works on it works on a released checkpoint of that family.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gad_jax.cache import create_once

NAME = "random-tiny"
Family = Literal["llama", "qwen2", "qwen3"]

# The number goes up when what write_tiny makes changes.
_CACHE_NAME = f"{NAME}-1"
_LAYERS, _WIDTH, _MLP, _HEADS, _KV_HEADS, _HEAD_WIDTH = 2, 32, 64, 4, 2, 8
# The tokenizer knows 259 ids; padded as in released checkpoints: an id without text can be sampled.
_VOCABULARY = 512
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
    if llama3_rope and family != "llama":
        raise ValueError(f"llama3_rope is for family 'llama', not {family!r}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    end, pad = _SPECIAL["<|im_end|>"], _SPECIAL["<|endoftext|>"]
    _write_json(directory / "config.json", _config(family, tied, llama3_rope))
    _write_json(
        directory / "generation_config.json", {"eos_token_id": [end, pad], "pad_token_id": pad}
    )
    _write_tokenizer(directory)
    _write_weights(_tensors(family, tied, seed), directory, num_shards)


def _config(family: Family, tied: bool, llama3_rope: bool) -> dict[str, Any]:
    class_name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    config = {
        "architectures": [f"{class_name}ForCausalLM"],
        "model_type": family,
        "vocab_size": _VOCABULARY,
        "hidden_size": _WIDTH,
        "intermediate_size": _MLP,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_WIDTH,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5 if family == "llama" else 1e-6,
        "rope_theta": 10_000.0 if family == "llama" else 1_000_000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "attention_bias": False,  # of llama and qwen3; qwen2 always has one on q, k and v
        "bos_token_id": None,
        "eos_token_id": _SPECIAL["<|im_end|>"],
        "pad_token_id": _SPECIAL["<|endoftext|>"],
        "torch_dtype": "float32",
    }
    if llama3_rope:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    return config


def _tensors(family: Family, tied: bool, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random weights under Hugging Face's names, [out, in].

    Projections are N(0, 1 / in): attention is then far from uniform, so a wrong mask, position or
    head order moves the logits by far more than a parity tolerance.
    """
    random = np.random.default_rng(seed)

    def normal(*shape: int, mean: float = 0.0, std: float) -> NDArray[np.float32]:
        return (mean + std * random.standard_normal(shape)).astype(np.float32)

    def projection(out_width: int, in_width: int) -> NDArray[np.float32]:
        return normal(out_width, in_width, std=in_width**-0.5)

    def norm(width: int) -> NDArray[np.float32]:
        return normal(width, mean=1.0, std=0.1)

    query, key = _HEADS * _HEAD_WIDTH, _KV_HEADS * _HEAD_WIDTH
    tensors = {"model.embed_tokens.weight": normal(_VOCABULARY, _WIDTH, std=0.05)}
    for layer in range(_LAYERS):
        part = {
            "input_layernorm.weight": norm(_WIDTH),
            "self_attn.q_proj.weight": projection(query, _WIDTH),
            "self_attn.k_proj.weight": projection(key, _WIDTH),
            "self_attn.v_proj.weight": projection(key, _WIDTH),
            "self_attn.o_proj.weight": projection(_WIDTH, query),
            "post_attention_layernorm.weight": norm(_WIDTH),
            "mlp.gate_proj.weight": projection(_MLP, _WIDTH),
            "mlp.up_proj.weight": projection(_MLP, _WIDTH),
            "mlp.down_proj.weight": projection(_WIDTH, _MLP),
        }
        if family == "qwen2":
            part |= {
                "self_attn.q_proj.bias": normal(query, std=0.5),
                "self_attn.k_proj.bias": normal(key, std=0.5),
                "self_attn.v_proj.bias": normal(key, std=0.5),
            }
        if family == "qwen3":
            part |= {
                "self_attn.q_norm.weight": norm(_HEAD_WIDTH),
                "self_attn.k_norm.weight": norm(_HEAD_WIDTH),
            }
        tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in part.items()}
    tensors["model.norm.weight"] = norm(_WIDTH)
    if not tied:
        tensors["lm_head.weight"] = normal(_VOCABULARY, _WIDTH, std=0.05)
    return tensors


def _write_weights(
    tensors: dict[str, NDArray[np.float32]], directory: Path, num_shards: int
) -> None:
    from safetensors.numpy import save_file

    metadata = {"format": "pt"}
    if num_shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata=metadata)
        return
    weight_map = {}
    for shard, names in enumerate(np.array_split(list(tensors), num_shards), start=1):
        file = f"model-{shard:05}-of-{num_shards:05}.safetensors"
        weight_map |= {str(name): file for name in names}
        save_file({str(n): tensors[str(n)] for n in names}, directory / file, metadata=metadata)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    assert all(tokenizer.token_to_id(token) == token_id for token, token_id in _SPECIAL.items())
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 2048,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": _CHAT_TEMPLATE,
        },
    )


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's alphabet)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(code) for code in range(0x100, 0x200))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

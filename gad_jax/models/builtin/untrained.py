"""Untrained models of any size: Hugging Face directories with random weights and a tokenizer.

A complete directory of a real family, so that what works on it works on a released checkpoint.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Family = Literal["llama", "qwen2", "qwen3"]
MAX_POSITIONS = 2048


class Sizes(NamedTuple):
    """The shape of a decoder."""

    vocabulary: int
    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_width: int


class Special(NamedTuple):
    """The tokens that ordinary text never becomes, and the template that writes them."""

    pad: str
    end: str
    chat_template: str


def write(
    directory: Path,
    tokenizer: "Tokenizer",
    special: Special,
    sizes: Sizes,
    family: Family = "llama",
    tied: bool = True,
    seed: int = 0,
    num_shards: int = 1,
    llama3_rope: bool = False,
) -> None:
    """Writes a model with random float32 weights; equal arguments give equal bytes.

    With `num_shards` > 1 the weights are model-00001-of-0000N.safetensors … and an index.
    `llama3_rope` (llama only) scales RoPE as Llama 3.x does, from 64 positions by 8.
    """
    if llama3_rope and family != "llama":
        raise ValueError(f"llama3_rope is for family 'llama', not {family!r}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer.get_vocab()
    end, pad = vocabulary[special.end], vocabulary[special.pad]
    config = _config(family, sizes, tied, llama3_rope, end, pad)
    _write_json(directory / "config.json", config)
    _write_json(
        directory / "generation_config.json", {"eos_token_id": [end, pad], "pad_token_id": pad}
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_POSITIONS,
            "clean_up_tokenization_spaces": False,
            # transformers 4 adds token_type_ids otherwise, which its own models refuse
            "model_input_names": ["input_ids", "attention_mask"],
            "eos_token": special.end,
            "pad_token": special.pad,
            "chat_template": special.chat_template,
        },
    )
    _write_weights(_tensors(family, sizes, tied, seed), directory, num_shards)


def _config(
    family: Family, sizes: Sizes, tied: bool, llama3_rope: bool, end: int, pad: int
) -> dict[str, Any]:
    class_name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    config = {
        "architectures": [f"{class_name}ForCausalLM"],
        "model_type": family,
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5 if family == "llama" else 1e-6,
        "rope_theta": 10_000.0 if family == "llama" else 1_000_000.0,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": tied,
        "attention_bias": False,  # of llama and qwen3; qwen2 always has one on q, k and v
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
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


def _tensors(family: Family, sizes: Sizes, tied: bool, seed: int) -> dict[str, NDArray[np.float32]]:
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

    query, key = sizes.heads * sizes.head_width, sizes.kv_heads * sizes.head_width
    tensors = {"model.embed_tokens.weight": normal(sizes.vocabulary, sizes.width, std=0.05)}
    for layer in range(sizes.layers):
        part = {
            "input_layernorm.weight": norm(sizes.width),
            "self_attn.q_proj.weight": projection(query, sizes.width),
            "self_attn.k_proj.weight": projection(key, sizes.width),
            "self_attn.v_proj.weight": projection(key, sizes.width),
            "self_attn.o_proj.weight": projection(sizes.width, query),
            "post_attention_layernorm.weight": norm(sizes.width),
            "mlp.gate_proj.weight": projection(sizes.mlp, sizes.width),
            "mlp.up_proj.weight": projection(sizes.mlp, sizes.width),
            "mlp.down_proj.weight": projection(sizes.width, sizes.mlp),
        }
        if family == "qwen2":
            part |= {
                "self_attn.q_proj.bias": normal(query, std=0.5),
                "self_attn.k_proj.bias": normal(key, std=0.5),
                "self_attn.v_proj.bias": normal(key, std=0.5),
            }
        if family == "qwen3":
            part |= {
                "self_attn.q_norm.weight": norm(sizes.head_width),
                "self_attn.k_norm.weight": norm(sizes.head_width),
            }
        tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in part.items()}
    tensors["model.norm.weight"] = norm(sizes.width)
    if not tied:
        tensors["lm_head.weight"] = normal(sizes.vocabulary, sizes.width, std=0.05)
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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

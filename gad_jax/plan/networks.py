"""The shape of a network by its name, without its weights."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from gad_jax.models import families, source, weights
from gad_jax.models.config import DecoderConfig
from gad_jax.training import origins

_QWEN = {"model_type": "qwen2", "rope_theta": 1e6, "rms_norm_eps": 1e-6}
_QWEN |= {"max_position_embeddings": 32768, "tie_word_embeddings": False, "dtype": "bfloat16"}
_LLAMA = {"model_type": "llama", "rope_theta": 5e5, "rms_norm_eps": 1e-5, "vocab_size": 128256}
_LLAMA |= {"max_position_embeddings": 131072, "tie_word_embeddings": False, "head_dim": 128}
_STRETCH = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_STRETCH |= {"original_max_position_embeddings": 8192}


def _sizes(width: int, layers: int, heads: int, kv_heads: int, mlp: int, **more: Any) -> dict:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        **more,
    }


KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN
    | _sizes(896, 24, 14, 2, 4864, vocab_size=151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN
    | _sizes(1536, 28, 12, 2, 8960, vocab_size=151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-3B-Instruct": _QWEN
    | _sizes(2048, 36, 16, 2, 11008, vocab_size=151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-7B-Instruct": _QWEN | _sizes(3584, 28, 28, 4, 18944, vocab_size=152064),
    "Qwen/Qwen2.5-14B-Instruct": _QWEN | _sizes(5120, 48, 40, 8, 13824, vocab_size=152064),
    "Qwen/Qwen2.5-32B-Instruct": _QWEN | _sizes(5120, 64, 40, 8, 27648, vocab_size=152064),
    "Qwen/Qwen2.5-72B-Instruct": _QWEN | _sizes(8192, 80, 64, 8, 29568, vocab_size=152064),
    "Qwen/Qwen3-30B-A3B": _QWEN
    | _sizes(2048, 48, 32, 4, 6144, vocab_size=151936, head_dim=128, model_type="qwen3_moe")
    | {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}
    | {"norm_topk_prob": True, "max_position_embeddings": 40960},
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA
    | _sizes(3072, 28, 24, 8, 8192, tie_word_embeddings=True)
    | {"rope_scaling": _STRETCH | {"factor": 32.0}},
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA
    | _sizes(4096, 32, 32, 8, 14336)
    | {"rope_scaling": _STRETCH | {"factor": 8.0}},
}
"""config.json of the students in configs/, of other sizes and of a mixture of experts, so that a
plan needs no network and no licence."""


def read(name: str) -> DecoderConfig:
    """Returns the shape of the network called `name`, as in `--student.path`; of a run, its model.

    For a hub id, only config.json is fetched. Raises UserError for an unknown name.
    """
    name = origins.model_of(name)
    if name in KNOWN:
        return families.read(KNOWN[name])
    if (Path(name) / "config.json").is_file():
        return weights.read_config(name)
    if "/" not in name:
        return weights.read_config(source.resolve(name))
    try:
        return weights.read_config(Path(hf_hub_download(name, "config.json")).parent)
    except Exception:  # not on the hub, or no network: `resolve` raises the sentence for it
        return weights.read_config(source.resolve(name))

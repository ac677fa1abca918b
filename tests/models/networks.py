"""Random networks of every family and kind of layer: their config.json, and directories of them."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gad_jax.models import decoder, families, source, writing
from gad_jax.models.carried import Carried
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Params

_SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 258,
    "pad_token_id": 256,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_FACTORS = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [2.0, 3.0, 4.0]}


def _of(family: str, **fields: Any) -> dict[str, Any]:
    return _SIZES | {"model_type": family} | fields


NETWORKS: dict[str, dict[str, Any]] = {
    "llama-biases": _of("llama", attention_bias=True, mlp_bias=True),
    "llama-linear": _of("llama", rope_scaling={"type": "linear", "factor": 4.0}),
    "llama-yarn": _of("llama", rope_scaling=_YARN | {"beta_fast": 8, "truncate": False}),
    "qwen2-yarn": _of("qwen2", rope_scaling=_YARN),
    "qwen2-window": _of("qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "qwen3-biases": _of("qwen3", attention_bias=True, head_dim=16),
    "mistral": _of("mistral", sliding_window=9),
    "mistral-wide-heads": _of("mistral", sliding_window=None, head_dim=16),
    "ministral": _of("ministral", head_dim=8, sliding_window=5, layer_types=[_SLIDING, _FULL]),
    "smollm3": _of("smollm3", no_rope_layers=[1, 0], tie_word_embeddings=True),
    "smollm3-window": _of(
        "smollm3",
        num_hidden_layers=3,
        no_rope_layers=[1, 0, 1],
        use_sliding_window=True,
        sliding_window=6,
        layer_types=[_FULL, _SLIDING, _SLIDING],
    ),
    "olmo2": _of("olmo2"),
    "olmo3": _of(
        "olmo3",
        num_hidden_layers=4,
        sliding_window=6,
        rope_theta=500_000.0,
        rope_scaling=_YARN | {"factor": 8.0},
    ),
    "phi3": _of("phi3", sliding_window=9),
    "phi4-mini": _of(
        "phi3",
        partial_rotary_factor=0.75,
        original_max_position_embeddings=1024,
        rope_scaling={"type": "longrope", **_FACTORS},
        tie_word_embeddings=True,
    ),
    "gemma3": _of(
        "gemma3_text",
        num_hidden_layers=3,
        head_dim=16,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=24,
        sliding_window=6,
        sliding_window_pattern=3,
        rope_local_base_freq=100.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        tie_word_embeddings=True,
    ),
    "qwen3-moe": _of(
        "qwen3_moe",
        head_dim=16,
        attention_bias=True,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        norm_topk_prob=True,
    ),
    "qwen3-moe-window": _of(
        "qwen3_moe",
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=16,
        use_sliding_window=True,
        sliding_window=7,
        tie_word_embeddings=True,
    ),
    "olmoe": _of("olmoe", num_experts=8, num_experts_per_tok=3, num_key_value_heads=4),
    "mixtral": _of("mixtral", num_local_experts=4, head_dim=16, sliding_window=9),
    "granite": _of(
        "granite",
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.4,
        logits_scaling=8.0,
        tie_word_embeddings=True,
    ),
}
"""Name → config.json. The windows are shorter than the texts that are compared."""


def random_params(config: DecoderConfig, seed: int = 0) -> Params:
    """Returns weights that set every part apart: kernels N(0, 1 / in), scales and biases too.

    Attention is then far from uniform: a wrong mask, position or head order moves the logits by
    far more than a parity tolerance.
    """
    random = np.random.default_rng(seed)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        normal = random.standard_normal(shape.shape)
        if name == "scale":
            return (1 - config.norm_offset + 0.1 * normal).astype(np.float32)
        if name == "kernel":
            return (shape.shape[-2] ** -0.5 * normal).astype(np.float32)
        deviation = 0.5 if name == "bias" else 0.05
        return (deviation * normal).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, decoder.abstract(config))


def write(directory: Path, hf: dict[str, Any], seed: int = 0) -> Path:
    """Writes a Hugging Face directory with this config.json, random weights and a tokenizer."""
    from transformers import AutoTokenizer

    config = families.read(hf)
    tiny = source.resolve("random-tiny")
    carried = Carried(tiny, AutoTokenizer.from_pretrained(tiny), (258, 256), tiny)
    params = jax.tree.map(jax.numpy.asarray, random_params(config, seed))
    writing.save(directory, config, params, carried)
    (directory / "SHA256SUMS").unlink()
    (directory / "config.json").write_text(json.dumps(hf | {"architectures": _class(directory)}))
    return directory


def of_family(family: str, tied: bool) -> dict[str, Any]:
    """Returns the config.json of one of the networks of a family."""
    hf = next(hf for hf in NETWORKS.values() if hf["model_type"] == family)
    return hf | {"tie_word_embeddings": tied}


def _class(directory: Path) -> list[str]:
    return json.loads((directory / "config.json").read_text())["architectures"]

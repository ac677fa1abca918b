"""Qwen2 and Qwen2.5: biases on queries, keys and values."""

from typing import Any

from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common

NAMES = common.NAMES | {
    "layers/query/bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers/key/bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers/value/bias": "model.layers.{}.self_attn.v_proj.bias",
}


def read(hf: dict[str, Any]) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: qwen2`."""
    return common.read(hf, qkv_bias=True)


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a Qwen2 network."""
    return common.write(config, "Qwen2", use_sliding_window=False)

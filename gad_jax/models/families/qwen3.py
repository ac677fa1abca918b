"""Qwen3 (dense): RMS norms on each head's query and key, no biases."""

from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common

NAMES = common.NAMES | {
    "layers/query_norm/scale": "model.layers.{}.self_attn.q_norm.weight",
    "layers/key_norm/scale": "model.layers.{}.self_attn.k_norm.weight",
}


def read(hf: dict[str, Any]) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: qwen3`."""
    if hf.get("attention_bias"):
        raise UserError("config.json: attention_bias=true is not supported for qwen3 models")
    return common.read(hf, qk_norm=True)


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a Qwen3 network."""
    return common.write(config, "Qwen3", attention_bias=False, use_sliding_window=False)

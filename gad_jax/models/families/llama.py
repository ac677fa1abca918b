"""Llama 2, 3 and their relatives (SmolLM2): no biases; Llama 3.1 and later stretch RoPE."""

from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common

NAMES = common.NAMES


def read(hf: dict[str, Any]) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: llama`."""
    if hf.get("attention_bias"):
        raise UserError("config.json: attention_bias=true is not supported for llama models")
    return common.read(hf)


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a llama network."""
    return common.write(config, "Llama", attention_bias=False, mlp_bias=False)

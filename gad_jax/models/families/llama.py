"""Llama 2, 3 and their relatives (SmolLM2); Llama 3.1 and later stretch RoPE."""

from typing import Any

from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common
from gad_jax.models.families.fields import Fields

names = common.names


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: llama`."""
    bias = fields.flag("attention_bias", False)
    mlp_bias = fields.flag("mlp_bias", False)
    return common.read(fields, qkv_bias=bias, output_bias=bias, mlp_bias=mlp_bias)


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a llama network."""
    return common.write(config, "Llama", attention_bias=config.qkv_bias, mlp_bias=config.mlp_bias)

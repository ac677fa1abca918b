"""Qwen3 (dense): RMS norms on each head's query and key."""

from typing import Any

from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common, qwen2
from gad_jax.models.families.fields import Fields

names = common.names


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: qwen3`."""
    bias = fields.flag("attention_bias", False)
    kinds, pattern = qwen2.layers(fields)
    return common.read(
        fields,
        kinds=kinds,
        pattern=pattern,
        kv_heads=32,
        head_width=128,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a Qwen3 network."""
    windows = qwen2.windows(config)
    return common.write(config, "Qwen3", attention_bias=config.qkv_bias, **windows)

"""Granite 3: Llama with constant factors on embeddings, residuals, attention and logits."""

from typing import Any

from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common
from gad_jax.models.families.fields import Fields

names = common.names


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: granite`."""
    bias = fields.flag("attention_bias", False)
    return common.read(
        fields,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        attention_scale=fields.number("attention_multiplier", 1.0),
        logit_divisor=fields.number("logits_scaling", 1.0),
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a Granite network."""
    return common.write(
        config,
        "Granite",
        attention_bias=config.qkv_bias,
        mlp_bias=config.mlp_bias,
        embedding_multiplier=config.embedding_scale,
        residual_multiplier=config.residual_scale,
        attention_multiplier=config.attention_scale,
        logits_scaling=config.logit_divisor,
    )

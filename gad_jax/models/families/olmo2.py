"""OLMo 2: norms after attention and mlp, and on all queries and all keys together."""

from typing import Any

from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common
from gad_jax.models.families.fields import Fields

names = common.names


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: olmo2`."""
    bias = fields.flag("attention_bias", False)
    return common.read(
        fields, epsilon=1e-5, qkv_bias=bias, output_bias=bias, qk_norm="all", norms="after"
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of an OLMo 2 network."""
    return common.write(config, "Olmo2", attention_bias=config.qkv_bias)

"""OLMoE: mixtures of experts, and norms on all queries and all keys together."""

from typing import Any

from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common
from gad_jax.models.families.fields import Fields

names = common.names


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: olmoe`."""
    fields.only("clip_qkv")
    heads, width = fields.count("num_attention_heads"), fields.count("hidden_size")
    fields.only("head_dim", width // heads)  # transformers' class has no others
    bias = fields.flag("attention_bias", False)
    inner, normalised = fields.count("intermediate_size"), fields.flag("norm_topk_prob", False)
    return common.read(
        fields,
        epsilon=1e-5,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="all",
        experts=common.experts(fields, (64, 8), inner, normalised),
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of an OLMoE network."""
    experts = config.experts
    assert experts is not None
    return common.write(
        config,
        "Olmoe",
        attention_bias=config.qkv_bias,
        num_experts=experts.count,
        num_experts_per_tok=experts.per_token,
        norm_topk_prob=experts.normalised,
    )

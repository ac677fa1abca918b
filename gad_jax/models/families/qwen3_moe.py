"""Qwen3's mixtures of experts: each layer's mlp is a router and its experts."""

from typing import Any

from gad_jax.models.config import DecoderConfig, LayerKind
from gad_jax.models.families import common, rope
from gad_jax.models.families.fields import Fields
from gad_jax.models.families.rope import FULL, SLIDING

names = common.names


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: qwen3_moe`."""
    fields.only("mlp_only_layers", [])
    fields.only("decoder_sparse_step", 1)
    bias = fields.flag("attention_bias", False)
    window = common.window(fields, 4096, switched=True)
    types = [SLIDING if window else FULL] * fields.count("num_hidden_layers")
    fields.only("layer_types", types)  # transformers' class takes the window for all layers
    width = fields.count("moe_intermediate_size", 768)
    normalised = fields.flag("norm_topk_prob", False)
    return common.read(
        fields,
        kinds=(LayerKind(rope.read(fields), window or 0),),
        kv_heads=4,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        experts=common.experts(fields, (128, 8), width, normalised),
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a Qwen3 mixture of experts."""
    experts, window = config.experts, common.largest_window(config)
    assert experts is not None
    return common.write(
        config,
        "Qwen3Moe",
        attention_bias=config.qkv_bias,
        use_sliding_window=window is not None,
        sliding_window=window,
        num_experts=experts.count,
        num_experts_per_tok=experts.per_token,
        moe_intermediate_size=experts.width,
        norm_topk_prob=experts.normalised,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )

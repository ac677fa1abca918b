"""Gemma 3 (text): norms before and after, scaled embeddings, GeGLU, a window in most layers whose
positions have a theta of their own."""

from typing import Any

from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common, rope
from gad_jax.models.families.fields import Fields
from gad_jax.models.families.rope import FULL, SLIDING

names = common.names


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: gemma3_text`."""
    fields.only("final_logit_softcapping")
    fields.only("attn_logit_softcapping")
    bias = fields.flag("attention_bias", False)
    count = fields.count("num_hidden_layers")
    every = fields.count("sliding_window_pattern", 6)
    default = [FULL if (layer + 1) % every == 0 else SLIDING for layer in range(count)]
    full, sliding = rope.read_by_kind(
        fields,
        fields.number("rope_theta", 1e6),
        fields.number("rope_local_base_freq", 1e4),
    )
    window = common.window(fields, 4096)
    kinds, pattern = common.layer_kinds(fields, full, sliding, window, default)
    return common.read(
        fields,
        kinds=kinds,
        pattern=pattern,
        tied=True,
        kv_heads=4,
        head_width=256,
        activation="hidden_activation",
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        norms="both",
        norm_offset=1.0,
        embedding_scale=fields.count("hidden_size") ** 0.5,
        attention_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a Gemma 3 network."""
    hf = common.write(
        config,
        "Gemma3",
        attention_bias=config.qkv_bias,
        query_pre_attn_scalar=_whole(config.attention_scale**-2),
        sliding_window=common.largest_window(config) or config.max_positions,
        layer_types=common.layer_types(config),
    )
    if config.head == "score":
        hf["architectures"] = ["Gemma3TextForSequenceClassification"]
    local = next((kind.rope for kind in config.kinds if kind.window), None)
    hf["rope_local_base_freq"] = local.theta if local else 10_000.0
    hf["hidden_activation"] = hf.pop("hidden_act")
    return hf


def _whole(value: float) -> float | int:
    return round(value) if abs(value - round(value)) < 1e-6 * value else value

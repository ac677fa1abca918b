"""SmolLM3: some layers have no rotary positions (NoPE)."""

from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.models.config import DecoderConfig, LayerKind
from gad_jax.models.families import common, rope
from gad_jax.models.families.fields import Fields
from gad_jax.models.families.rope import FULL, SLIDING

names = common.names


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: smollm3`."""
    count = fields.count("num_hidden_layers")
    interval = fields.count("no_rope_layer_interval", 4)
    default = [int((layer + 1) % interval != 0) for layer in range(count)]
    has_rope = fields.get("no_rope_layers", default)
    if not isinstance(has_rope, list) or len(has_rope) != count or set(has_rope) - {0, 1}:
        raise UserError(
            f"config.json: no_rope_layers={has_rope!r} must be a list of {count} entries, 1 for a "
            "layer with RoPE and 0 for one without; fetch the model again"
        )
    window = common.window(fields, switched=True)
    types = [SLIDING if window and not each else FULL for each in has_rope]
    positions = rope.read(fields, 2e6)
    seen, order = common.layer_kinds(fields, positions, positions, window, types)
    of_layers = [
        LayerKind(positions if each else None, seen[kind].window)
        for each, kind in zip(has_rope, order, strict=True)
    ]
    kinds = tuple(dict.fromkeys(of_layers))
    bias = fields.flag("attention_bias", False)
    return common.read(
        fields,
        kinds=kinds,
        pattern=[kinds.index(kind) for kind in of_layers],
        tied=True,
        kv_heads=4,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a SmolLM3 network."""
    window = common.largest_window(config)
    kinds = [config.kind(layer) for layer in range(config.layers)]
    return common.write(
        config,
        "SmolLM3",
        attention_bias=config.qkv_bias,
        mlp_bias=config.mlp_bias,
        no_rope_layers=[int(kind.rope is not None) for kind in kinds],
        use_sliding_window=window is not None,
        sliding_window=window,
        layer_types=common.layer_types(config),
    )

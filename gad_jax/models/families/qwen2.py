"""Qwen2 and Qwen2.5: biases on queries, keys and values; windows in the last layers, if at all."""

from typing import Any

from gad_jax.models.config import DecoderConfig, LayerKind
from gad_jax.models.families import common, rope
from gad_jax.models.families.fields import Fields
from gad_jax.models.families.rope import FULL, SLIDING

names = common.names


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: qwen2`."""
    kinds, pattern = layers(fields)
    return common.read(fields, kinds=kinds, pattern=pattern, kv_heads=32, qkv_bias=True)


def layers(fields: Fields) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    """Returns the kinds of layers: with `use_sliding_window`, a window from `max_window_layers`."""
    window = common.window(fields, 4096, switched=True)
    first = fields.get("max_window_layers", 28)
    count = fields.count("num_hidden_layers")
    default = [SLIDING if window and n >= first else FULL for n in range(count)]
    positions = rope.read(fields)
    return common.layer_kinds(fields, positions, positions, window, default)


def windows(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields of config.json that say which layers have a window."""
    window = common.largest_window(config)
    if window is None:
        return {"use_sliding_window": False}
    types = common.layer_types(config)
    # max_window_layers counts the full layers before the first window, for readers without
    # layer_types.
    return {
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": types.index(SLIDING),
        "layer_types": types,
    }


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a Qwen2 network."""
    return common.write(config, "Qwen2", **windows(config))

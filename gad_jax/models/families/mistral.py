"""Mistral, Nemo (heads wider than width / heads) and Ministral (`layer_types`)."""

from typing import Any

from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common, rope
from gad_jax.models.families.fields import Fields
from gad_jax.models.families.rope import FULL, SLIDING

names = common.names


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: mistral` or `ministral`."""
    window = common.window(fields, 4096)
    default = [SLIDING if window else FULL] * fields.count("num_hidden_layers")
    if fields.hf["model_type"] == "mistral":
        # transformers' class reads the window alone: other layer_types would change nothing there.
        fields.only("layer_types", default)
    else:
        fields.count("head_dim")  # without it, transformers' class cannot be made
    positions = rope.read(fields)
    kinds, pattern = common.layer_kinds(fields, positions, positions, window, default)
    return common.read(fields, kinds=kinds, pattern=pattern, kv_heads=8)


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a Mistral or Ministral network."""
    window = common.largest_window(config)
    if config.family == "mistral":
        return common.write(config, "Mistral", sliding_window=window)
    types = common.layer_types(config)
    return common.write(config, "Ministral", sliding_window=window, layer_types=types)

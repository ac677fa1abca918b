"""Phi-3 and Phi-4: fused projections; LongRoPE, on a part of each head in Phi-4-mini."""

from typing import Any

from gad_jax.models.config import DecoderConfig, LayerKind, LongRope
from gad_jax.models.families import common, rope
from gad_jax.models.families.common import Names, Part
from gad_jax.models.families.fields import Fields


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: phi3`."""
    kind = LayerKind(rope.read(fields, original=4096), common.window(fields) or 0)
    return common.read(fields, kinds=(kind,), epsilon=1e-5)


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a Phi-3 network."""
    hf = common.write(config, "Phi3", sliding_window=common.largest_window(config))
    positions = config.kinds[0].rope
    long = positions and positions.scaling
    if isinstance(long, LongRope):  # transformers 4 takes these three fields, and no other
        hf["max_position_embeddings"] = long.extended_positions
        hf["original_max_position_embeddings"] = long.original_max_positions
        factors = {"short_factor": long.short_factors, "long_factor": long.long_factors}
        hf["rope_scaling"] = {"type": "longrope"} | {k: list(v) for k, v in factors.items()}
    else:
        hf["original_max_position_embeddings"] = config.max_positions
    return hf


def names(config: DecoderConfig) -> Names:
    """Returns the usual names, with the projections that share a tensor as its rows."""
    query, key = config.heads * config.head_width, config.kv_heads * config.head_width
    fused = {
        "self_attn.qkv_proj": {"query": query, "key": key, "value": key},
        "mlp.gate_up_proj": {"gate": config.mlp_width, "up": config.mlp_width},
    }
    found = common.names(config)
    for tensor, sizes in fused.items():
        start, rows = 0, sum(sizes.values())
        for name, size in sizes.items():
            tensor_name = f"model.layers.{{}}.{tensor}.weight"
            found[f"layers/{name}/kernel"] = Part(tensor_name, start, start + size, rows)
            start += size
    return found

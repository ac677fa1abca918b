"""Mixtral: Mistral with mixtures of experts."""

from typing import Any

from gad_jax.models.config import DecoderConfig, LayerKind
from gad_jax.models.families import common, rope
from gad_jax.models.families.common import Names
from gad_jax.models.families.fields import Fields


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: mixtral`."""
    kind = LayerKind(rope.read(fields, 1e6), common.window(fields) or 0)
    experts = common.experts(fields, (8, 2), fields.count("intermediate_size"), normalised=True)
    return common.read(fields, kinds=(kind,), epsilon=1e-5, kv_heads=8, experts=experts)


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a Mixtral network."""
    experts = config.experts
    assert experts is not None
    return common.write(
        config,
        "Mixtral",
        sliding_window=common.largest_window(config),
        num_local_experts=experts.count,
        num_experts_per_tok=experts.per_token,
    )


def names(config: DecoderConfig) -> Names:
    """Returns the usual names, with Mixtral's own for router and experts."""
    block = "model.layers.{}.block_sparse_moe."
    found = common.names(config) | {"layers/experts/router/kernel": f"{block}gate.weight"}
    for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        found[f"layers/experts/{ours}/kernel"] = f"{block}experts.{{}}.{theirs}.weight"
    return found

"""OLMo 3: OLMo 2 with a window in three of four layers, whose positions are never stretched."""

from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import common, rope
from gad_jax.models.families.fields import Fields
from gad_jax.models.families.rope import FULL, SLIDING

names = common.names
_THETA = 500_000.0


def read(fields: Fields) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json with `model_type: olmo3`."""
    count = fields.count("num_hidden_layers")
    default = [FULL if (layer + 1) % 4 == 0 else SLIDING for layer in range(count)]
    theta = fields.number("rope_theta", _THETA)
    newer = fields.get("rope_parameters")
    named = isinstance(newer, dict) and "rope_theta" in (newer.get(FULL) or {})
    if theta != _THETA and not named:
        raise UserError(
            f"config.json: transformers 4 reads rope_theta={fields.hf['rope_theta']!r} for all "
            f"layers and transformers 5 for some; write rope_parameters for {FULL!r} and "
            f"{SLIDING!r} instead"
        )
    full, sliding = rope.read_by_kind(fields, _THETA, _THETA)
    window = common.window(fields, 4096)
    kinds, pattern = common.layer_kinds(fields, full, sliding, window, default)
    bias = fields.flag("attention_bias", False)
    return common.read(
        fields,
        kinds=kinds,
        pattern=pattern,
        epsilon=1e-5,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="all",
        norms="after",
    )


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of an OLMo 3 network."""
    hf = common.write(
        config,
        "Olmo3",
        attention_bias=config.qkv_bias,
        sliding_window=common.largest_window(config),
        layer_types=common.layer_types(config),
    )
    if any(kind.rope and kind.rope.theta != _THETA for kind in config.kinds):
        both = {FULL if not kind.window else SLIDING: kind.rope for kind in config.kinds}
        hf["rope_parameters"] = {
            name: rope.write_newer(each) for name, each in both.items() if each
        }
        del hf["rope_theta"]
        hf.pop("rope_scaling", None)
    return hf

"""Rotary positions in a config.json, in all the forms that transformers reads, and back.

Two forms stand side by side: `rope_theta` and `rope_scaling` (older), and `rope_parameters` (from
transformers 5 on). A model card may say to add `rope_scaling` by hand. transformers then drops the
whole of `rope_parameters`, its theta too, and so does this module.
"""

import math
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.models.config import DecoderConfig, Linear, Llama3, LongRope, Rope, Yarn
from gad_jax.models.families.fields import MISSING, Fields, positive

FULL, SLIDING = "full_attention", "sliding_attention"
_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
_KEYS = {
    "default": "",
    "linear": "factor",
    "llama3": "factor low_freq_factor high_freq_factor original_max_position_embeddings",
    "yarn": "factor original_max_position_embeddings attention_factor beta_fast beta_slow "
    "mscale mscale_all_dim truncate",
    "longrope": "factor short_factor long_factor original_max_position_embeddings attention_factor",
}


def read(fields: Fields, default_theta: float = 10_000.0, original: int | None = None) -> Rope:
    """Returns the positions of a network whose layers all have the same.

    `original` is what transformers' class has where `original_max_position_embeddings` is missing
    at the top (phi3 alone).
    """
    older, newer = fields.get("rope_scaling"), fields.get("rope_parameters")
    name, given = ("rope_scaling", older) if older else ("rope_parameters", newer or {})
    if not isinstance(given, dict):
        raise UserError(
            f"config.json: {name}={given!r} must be a JSON object; fetch the model again"
        )
    if any(isinstance(value, dict) for value in given.values()):
        raise UserError(
            f"config.json: {name}={given!r} gives each kind of layer positions of its own, which "
            f"transformers does not read for family {fields.hf.get('model_type')!r}; give one set"
        )
    kind, outside = given.get("rope_type") or given.get("type"), None
    if original or kind not in (None, "default", "linear"):  # else it would be ignored
        outside = fields.get("original_max_position_embeddings", original)
    return _rope(fields, dict(given), default_theta, outside)


def read_by_kind(fields: Fields, full_theta: float, sliding_theta: float) -> tuple[Rope, Rope]:
    """Returns the positions of full and of sliding layers (gemma3, olmo3).

    The thetas are those of settings that name none. The older form's `rope_scaling` stretches the
    full layers alone, and changes the newer form's settings key by key.
    """
    older = fields.get("rope_scaling", {})
    newer = fields.get("rope_parameters", {})
    if not isinstance(newer, dict) or not isinstance(older, dict):
        raise UserError(
            "config.json: rope_parameters and rope_scaling must be JSON objects; fetch the model "
            "again"
        )
    if not set(newer) <= {FULL, SLIDING}:
        raise UserError(
            f"config.json: rope_parameters={newer!r} is one set for all layers; family "
            f"{fields.hf.get('model_type')!r} needs one for {FULL!r} and one for {SLIDING!r}"
        )
    if older and "rope_type" not in older:
        raise UserError(
            f"config.json: rope_scaling={older!r} has no 'rope_type', and transformers reads no "
            f"other name of the kind for family {fields.hf.get('model_type')!r}; add it"
        )
    full = {"rope_theta": full_theta} | dict(newer.get(FULL) or {}) | older
    sliding = {"rope_theta": sliding_theta} | dict(newer.get(SLIDING) or {})
    for given in (full, sliding):
        if given.get("truncate") is False:
            raise UserError(
                "config.json: truncate=False is not read by transformers 5 for family "
                f"{fields.hf.get('model_type')!r}; this decoder needs True there"
            )
    # No position of original training at the top: transformers 5 reads it in the settings alone.
    return _rope(fields, full, full_theta, None), _rope(fields, sliding, sliding_theta, None)


def write(config: DecoderConfig, rope: Rope) -> dict[str, Any]:
    """Returns the fields of the older form, which transformers 4 and 5 both read."""
    hf: dict[str, Any] = {"rope_theta": rope.theta}
    if rope.rotary_width and rope.rotary_width != config.head_width:
        hf["partial_rotary_factor"] = rope.rotary_width / config.head_width
    if rope.scaling is not None:
        hf["rope_scaling"] = _scaling(rope.scaling)
    return hf


def write_newer(rope: Rope) -> dict[str, Any]:
    """Returns one entry of `rope_parameters`, which transformers 5 reads."""
    scaling = {"rope_type": "default"} if rope.scaling is None else _scaling(rope.scaling)
    return scaling | {"rope_theta": rope.theta}


def _rope(fields: Fields, given: dict[str, Any], default_theta: float, outside: int | None) -> Rope:
    """Returns the positions of one set of settings; `outside`: original positions at the top."""
    kind = given.pop("rope_type", None)
    older = given.pop("type", None)
    kind = kind or older or "default"
    if fields.hf.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # as transformers reads those names there
    types = ("default", "longrope") if fields.hf.get("model_type") == "phi3" else _TYPES
    if kind not in types:
        raise UserError(
            f"config.json: rope_type={kind!r} is not supported; this decoder has "
            f"{', '.join(map(repr, types))}"
        )
    theta = positive("rope_theta", given.pop("rope_theta", fields.get("rope_theta", default_theta)))
    if theta <= 1:
        raise UserError(f"config.json: rope_theta={theta:g} must be greater than 1")
    width = _rotary_width(fields, given.pop("partial_rotary_factor", None))
    given.pop("finetuned", None)  # how a YaRN model came to be
    if kind == "yarn" and given.get("factor", 1) is None:  # as transformers 5 reads it
        most = fields.count("max_position_embeddings")
        given["factor"] = most / _original_positions(fields, given, outside)
    given = {key: value for key, value in given.items() if value is not None}
    unknown = sorted(given.keys() - _KEYS[kind].split())
    if unknown:
        raise UserError(
            f"config.json: {unknown[0]}={given[unknown[0]]!r} of the RoPE settings means nothing "
            f"for rope_type={kind!r}; remove it, or check rope_type"
        )
    return Rope(theta, _read_scaling(fields, kind, given, width, outside), width)


def _rotary_width(fields: Fields, factor: Any) -> int:
    """Returns the rotated numbers of a head; 0: all of them."""
    top = fields.get("partial_rotary_factor", 1.0)
    factor = top if factor is None else factor
    if positive("partial_rotary_factor", factor) == 1.0:
        return 0
    if fields.hf.get("model_type") != "phi3" or factor > 1:
        raise UserError(
            f"config.json: partial_rotary_factor={factor!r} is not supported for family "
            f"{fields.hf.get('model_type')!r}; this decoder needs 1.0"
        )
    return int(head_width(fields) * factor)


def head_width(fields: Fields) -> int:
    """Returns the width of a head: its field, or width / heads."""
    heads = fields.count("num_attention_heads")
    return fields.count("head_dim", fields.count("hidden_size") // heads)


def _read_scaling(
    fields: Fields, kind: str, given: dict[str, Any], width: int, outside: int | None
) -> Linear | Llama3 | Yarn | LongRope | None:
    def number(name: str, default: Any = MISSING) -> float:
        value = given.get(name, default)
        if value is MISSING:
            raise KeyError(name)
        return positive(name, value)

    if kind == "default":
        return None
    factor = 1.0 if kind == "longrope" else number("factor")
    if kind == "linear":
        return Linear(factor)
    original = _original_positions(fields, given, outside)
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if high <= low:
            raise UserError(
                f"config.json: high_freq_factor={high:g} must be greater than "
                f"low_freq_factor={low:g}; fetch the model again"
            )
        return Llama3(factor, low, high, original)
    if kind == "yarn":
        attention = given.get("attention_factor")
        return Yarn(
            factor,
            original,
            _yarn_attention(factor, given) if attention is None else number("attention_factor"),
            number("beta_fast", 32.0),
            number("beta_slow", 1.0),
            bool(given.get("truncate", True)),
        )
    width = width or head_width(fields)
    if width % 2:
        raise UserError(
            f"config.json: partial_rotary_factor rotates {width} numbers of a head, but LongRoPE "
            "needs pairs of them; fetch the model again"
        )
    return _long_rope(fields, given, original, width // 2)


def _yarn_attention(factor: float, given: dict[str, Any]) -> float:
    """Returns 0.1 ln(factor) + 1 (arXiv:2309.00071, eq. 22), or DeepSeek's quotient of two such."""

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    names = ("mscale", "mscale_all_dim")
    above, below = (positive(name, given[name]) if given.get(name) else 0.0 for name in names)
    return magnitude(above) / magnitude(below) if above and below else magnitude(1.0)


def _original_positions(fields: Fields, given: dict[str, Any], outside: int | None) -> int:
    """Returns the positions of the original training."""
    inside = given.get("original_max_position_embeddings")
    if None not in (inside, outside) and inside != outside:
        raise UserError(
            f"config.json: original_max_position_embeddings is {outside!r} at the top and "
            f"{inside!r} in the RoPE settings; keep the one that is right"
        )
    most = fields.count("max_position_embeddings")
    original = next((n for n in (outside, inside) if n is not None), most)
    if int(positive("original_max_position_embeddings", original)) != original or original < 2:
        raise UserError(
            f"config.json: original_max_position_embeddings={original!r} must be an integer "
            "greater than 1; fetch the model again"
        )
    return int(original)


def _long_rope(fields: Fields, given: dict[str, Any], original: int, count: int) -> LongRope:
    most = fields.count("max_position_embeddings")
    factors = []
    for name in ("short_factor", "long_factor"):
        values = given.get(name, MISSING)
        if values is MISSING:
            raise KeyError(name)
        if not isinstance(values, list) or len(values) != count:
            raise UserError(
                f"config.json: {name} must be a list of {count} numbers, one for each frequency; "
                "fetch the model again"
            )
        factors.append(tuple(positive(name, value) for value in values))
    stretch = positive("factor", given.get("factor", most / original))
    attention = given.get("attention_factor")
    if attention is None:
        attention = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    return LongRope(factors[0], factors[1], original, most, positive("attention_factor", attention))


def _scaling(scaling: Linear | Llama3 | Yarn | LongRope) -> dict[str, Any]:
    match scaling:
        case Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3() as s:
            return {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_frequency_factor,
                "high_freq_factor": s.high_frequency_factor,
                "original_max_position_embeddings": s.original_max_positions,
            }
        case Yarn() as s:
            return {
                "rope_type": "yarn",
                "factor": s.factor,
                "original_max_position_embeddings": s.original_max_positions,
                "attention_factor": s.attention_factor,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "truncate": s.truncate,
            }
        case LongRope() as s:
            return {
                "rope_type": "longrope",
                "short_factor": list(s.short_factors),
                "long_factor": list(s.long_factors),
                "original_max_position_embeddings": s.original_max_positions,
                "attention_factor": s.attention_factor,
            }

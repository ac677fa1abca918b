"""What all families share: the usual fields of a Hugging Face config and the usual weight names."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from gad_jax.base.errors import UserError
from gad_jax.models.config import DecoderConfig, Experts, LayerKind, Rope
from gad_jax.models.families import rope
from gad_jax.models.families.fields import MISSING, Fields
from gad_jax.models.families.rope import FULL, SLIDING

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_SCORES, _LOGITS = "ForSequenceClassification", ("ForCausalLM", "LMHeadModel", "Model")


class Part(NamedTuple):
    """Some rows of a Hugging Face tensor that holds several parameters one after the other."""

    tensor: str
    start: int
    stop: int
    rows: int
    """Rows of the whole tensor."""


Names = dict[str, str | Part]
"""Our parameter path → Hugging Face tensor; {} is the layer, a second one the expert.

Kernels are stored transposed.
"""


def read(
    fields: Fields,
    *,
    kinds: tuple[LayerKind, ...] = (),
    pattern: Sequence[int] = (),
    epsilon: float = 1e-6,
    tied: bool = False,
    kv_heads: int | None = None,
    head_width: int | None = None,
    activation: str = "hidden_act",
    **switches: Any,
) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json.

    `kinds` and `pattern` are the family's layers (default: all see everything), the next four the
    defaults of transformers' class, `activation` the name of that field. Raises UserError for a
    field that has a value this decoder cannot compute, or that nothing knows.
    """
    _refuse_other_attention(fields, whole=not kinds)
    heads = _heads(fields, kv_heads, head_width)
    kinds = kinds or (LayerKind(rope.read(fields)),)
    config = DecoderConfig(
        family=fields.hf["model_type"],
        vocabulary=fields.count("vocab_size"),
        width=fields.count("hidden_size"),
        mlp_width=fields.count("intermediate_size"),
        layers=fields.count("num_hidden_layers"),
        heads=heads[0],
        kv_heads=heads[1],
        head_width=heads[2],
        norm_epsilon=fields.number("rms_norm_eps", epsilon),
        max_positions=_max_positions(fields, kinds),
        kinds=kinds,
        pattern=tuple(pattern) if len(kinds) > 1 else (),
        tied=fields.flag("tie_word_embeddings", tied),
        activation=_activation(fields, activation),
        stored_dtype=_stored_dtype(fields.hf),
        head=_head(fields),
        **switches,
    )
    fields.refuse_unread()
    return config


def _refuse_other_attention(fields: Fields, whole: bool) -> None:
    """Refuses what is no causal decoder; `whole`: the family's layers have no windows."""
    fields.only("is_causal", True)
    fields.only("use_bidirectional_attention", False)
    fields.only("is_encoder_decoder", False)
    fields.only("add_cross_attention", False)
    fields.only("quantization_config")
    if whole:
        fields.only("layer_types", [FULL] * fields.count("num_hidden_layers"))
        fields.only("use_sliding_window", False)


def _heads(fields: Fields, kv_heads: int | None, head_width: int | None) -> tuple[int, int, int]:
    """Returns query heads, key/value heads and the width of a head."""
    heads, width = fields.count("num_attention_heads"), fields.count("hidden_size")
    # Missing is the family's default, null is as many as query heads.
    null = "num_key_value_heads" in fields.hf
    kv_heads = fields.count("num_key_value_heads", heads if null else kv_heads or heads)
    head_width = fields.count("head_dim", head_width or width // heads or MISSING)
    if heads % kv_heads or head_width % 2 or (fields.get("head_dim") is None and width % heads):
        raise UserError(
            f"config.json: hidden_size={width}, num_attention_heads={heads}, "
            f"num_key_value_heads={kv_heads} and heads of {head_width} do not divide each other; "
            "fetch the model again"
        )
    return heads, kv_heads, head_width


def experts(fields: Fields, default: tuple[int, int], width: int, normalised: bool) -> Experts:
    """Returns the experts of a mixture; `default` are the family's count and experts per token.

    Each of transformers 4 and 5 has its own name for the count.
    """
    counts = [(n, fields.get(n)) for n in ("num_experts", "num_local_experts")]
    given = dict.fromkeys(count for _, count in counts if count is not None)
    if len(given) > 1:
        both = " and ".join(f"{name}={count!r}" for name, count in counts)
        raise UserError(
            f"config.json: {both} are two names of one field; remove the one that is wrong"
        )
    name = next((name for name, count in counts if count is not None), "num_experts")
    count = fields.count(name, default[0])
    per_token = fields.count("num_experts_per_tok", default[1])
    if per_token > count:
        raise UserError(
            f"config.json: num_experts_per_tok={per_token}, but there are {count} experts; fetch "
            "the model again"
        )
    return Experts(count, per_token, width, normalised)


def layer_kinds(
    fields: Fields, full: Rope, sliding: Rope, window: int | None, default: Sequence[str]
) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    """Returns the kinds of layers and their pattern from `layer_types`, else the family's default.

    A window is of sliding layers alone; they need one. A kind that no layer has is left out.
    """
    layers = fields.count("num_hidden_layers")
    types = fields.get("layer_types", list(default))
    if not isinstance(types, list) or len(types) != layers or set(types) - {FULL, SLIDING}:
        raise UserError(
            f"config.json: layer_types must be a list of {layers} entries, each {FULL!r} or "
            f"{SLIDING!r}, and is {types!r}; fetch the model again"
        )
    if SLIDING in types and window is None:
        raise UserError(
            f"config.json: layer_types has {SLIDING!r}, but no window is in use "
            f"(sliding_window={fields.hf.get('sliding_window')!r}, "
            f"use_sliding_window={fields.hf.get('use_sliding_window')!r}); correct one of them"
        )
    found = {FULL: LayerKind(full), SLIDING: LayerKind(sliding, window or 0)}
    kinds = tuple(dict.fromkeys(found[kind] for kind in types))
    return kinds, tuple(kinds.index(found[kind]) for kind in types)


def window(fields: Fields, default: int | None = None, switched: bool = False) -> int | None:
    """Returns `sliding_window`, where null stands for none and a missing field for the default.

    In families where it is `switched`, it counts only with `use_sliding_window`.
    """
    off = switched and not fields.flag("use_sliding_window", False)
    value = fields.get("sliding_window", None if "sliding_window" in fields.hf else default)
    return None if off or value is None else fields.count("sliding_window", value)


def write(config: DecoderConfig, name: str, **switches: Any) -> dict[str, Any]:
    """Returns the config.json of a network; `name` is the family's class prefix, as in Qwen2.

    RoPE settings are written in the older form, which old and new readers understand.
    """
    kind = "ForSequenceClassification" if config.head == "score" else "ForCausalLM"
    hf: dict[str, Any] = {
        "architectures": [name + kind],
        "model_type": config.family,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": next(hf for hf, own in _ACTIVATIONS.items() if own == config.activation),
        "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        "torch_dtype": config.stored_dtype,
    }
    full = next((each.rope for each in config.kinds if not each.window and each.rope), None)
    if positions := full or config.kinds[0].rope:
        hf |= rope.write(config, positions)
    if config.head == "score":
        hf |= {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}}
    return hf | switches


def layer_types(config: DecoderConfig) -> list[str]:
    """Returns `layer_types` of config.json."""
    return [SLIDING if config.kind(n).window else FULL for n in range(config.layers)]


def largest_window(config: DecoderConfig) -> int | None:
    """Returns `sliding_window` of config.json: None where no layer has a window."""
    return max(kind.window for kind in config.kinds) or None


def names(config: DecoderConfig) -> Names:
    """Returns the usual names of all parameters that the network has."""
    attention, mlp = "model.layers.{}.self_attn.", "model.layers.{}.mlp."
    found: Names = {
        "embedding": "model.embed_tokens.weight",
        "final_norm/scale": "model.norm.weight",
    }
    if config.head == "score":
        found |= {"score/kernel": "score.weight"}
    elif not config.tied:
        found |= {"head/kernel": "lm_head.weight"}
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
        found[f"layers/{ours}/kernel"] = f"{attention}{theirs}_proj.weight"
        if config.output_bias if ours == "output" else config.qkv_bias:
            found[f"layers/{ours}/bias"] = f"{attention}{theirs}_proj.bias"
    if config.experts:
        found["layers/experts/router/kernel"] = f"{mlp}gate.weight"
    for ours in ("gate", "up", "down"):
        if config.experts:
            found[f"layers/experts/{ours}/kernel"] = f"{mlp}experts.{{}}.{ours}_proj.weight"
            continue
        found[f"layers/{ours}/kernel"] = f"{mlp}{ours}_proj.weight"
        if config.mlp_bias:
            found[f"layers/{ours}/bias"] = f"{mlp}{ours}_proj.bias"
    if config.qk_norm != "none":
        found |= {f"layers/{ours}_norm/scale": f"{attention}{ours[0]}_norm.weight"
                  for ours in ("query", "key")}  # fmt: skip
    for ours, theirs in _NORMS[config.norms].items():
        found[f"layers/{ours}/scale"] = f"model.layers.{{}}.{theirs}.weight"
    return found


_NORMS = {
    "before": {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    },
    "after": {
        "attention_post_norm": "post_attention_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
    "both": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}


def _max_positions(fields: Fields, kinds: tuple[LayerKind, ...]) -> int:
    """Returns the longest sequence: LongRoPE's long factors are not used (see `LongRope`)."""
    most = fields.count("max_position_embeddings", 2048)
    scalings = (kind.rope.scaling for kind in kinds if kind.rope)
    limits = (getattr(s, "original_max_positions", most) for s in scalings if _is_long(s))
    return min(most, *limits, most)


def _is_long(scaling: Any) -> bool:
    return hasattr(scaling, "long_factors")


def _activation(fields: Fields, name: str) -> Any:
    fields.only(name, *_ACTIVATIONS)
    default = "silu" if name == "hidden_act" else "gelu_pytorch_tanh"
    return _ACTIVATIONS[fields.get(name, default)]


def _stored_dtype(hf: dict[str, Any]) -> str:
    dtype = hf.get("dtype") or hf.get("torch_dtype") or "float32"
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
    if name not in _DTYPES:
        raise UserError(
            f"config.json: dtype={dtype!r} is not supported; use a model in {', '.join(_DTYPES)}"
        )
    return name


def _head(fields: Fields) -> Literal["vocabulary", "score"]:
    """Returns the head by `architectures`; without it the network has one of the vocabulary."""
    named = fields.get("architectures", [])
    named = [named] if isinstance(named, str) else named
    other = [name for name in named if not str(name).endswith((_SCORES, *_LOGITS))]
    if other or len({str(name).endswith(_SCORES) for name in named}) > 1:
        raise UserError(
            f"config.json: architectures={named!r} is not supported; this decoder needs a causal "
            f"language model (…ForCausalLM), or a score (…{_SCORES}) of one label"
        )
    if not named or not str(named[0]).endswith(_SCORES):
        return "vocabulary"
    labels = fields.get("id2label")
    fields.only("num_labels", 1)
    if labels is not None and len(labels) != 1:
        raise UserError(
            f"config.json: id2label has {len(labels)} labels, but a score has 1; use a model with "
            "one label"
        )
    return "score"

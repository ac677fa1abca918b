"""What all families share: the usual fields of a Hugging Face config and the usual weight names."""

from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.models.config import DecoderConfig, RopeScaling

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)

NAMES = {
    "embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
    "score/kernel": "score.weight",
    "layers/attention_norm/scale": "model.layers.{}.input_layernorm.weight",
    "layers/query/kernel": "model.layers.{}.self_attn.q_proj.weight",
    "layers/key/kernel": "model.layers.{}.self_attn.k_proj.weight",
    "layers/value/kernel": "model.layers.{}.self_attn.v_proj.weight",
    "layers/output/kernel": "model.layers.{}.self_attn.o_proj.weight",
    "layers/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers/gate/kernel": "model.layers.{}.mlp.gate_proj.weight",
    "layers/up/kernel": "model.layers.{}.mlp.up_proj.weight",
    "layers/down/kernel": "model.layers.{}.mlp.down_proj.weight",
}
"""Our parameter path → Hugging Face tensor; {} is the layer. Kernels are stored transposed."""


def read(hf: dict[str, Any], **switches: Any) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json, a family's own `switches` added.

    Raises UserError for a feature that the decoder does not have.
    """
    _refuse_unknown(hf)
    _check_sizes(hf)
    rope = rope_parameters(hf)
    heads, width = hf["num_attention_heads"], hf["hidden_size"]
    return DecoderConfig(
        family=hf["model_type"],
        vocabulary=hf["vocab_size"],
        width=width,
        mlp_width=hf["intermediate_size"],
        layers=hf["num_hidden_layers"],
        heads=heads,
        kv_heads=hf.get("num_key_value_heads") or heads,
        head_width=hf.get("head_dim") or width // heads,
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=_rope_scaling(rope),
        norm_epsilon=hf.get("rms_norm_eps", 1e-6),
        max_positions=hf.get("max_position_embeddings", 2048),
        tied=hf.get("tie_word_embeddings", False),
        stored_dtype=_stored_dtype(hf),
        head="score" if "SequenceClassification" in _architecture(hf) else "vocabulary",
        **switches,
    )


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
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        "torch_dtype": config.stored_dtype,
        **switches,
    }
    if s := config.rope_scaling:
        hf["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_frequency_factor,
            "high_freq_factor": s.high_frequency_factor,
            "original_max_position_embeddings": s.original_max_positions,
        }
    if config.head == "score":
        hf |= {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}}
    return hf


def rope_parameters(hf: dict[str, Any]) -> dict[str, Any]:
    """Returns rope_theta, rope_type and the rest, from either form of config.json."""
    rope = dict(hf.get("rope_scaling") or {}) | dict(hf.get("rope_parameters") or {})
    rope.setdefault("rope_theta", hf.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return rope


def _rope_scaling(rope: dict[str, Any]) -> RopeScaling | None:
    if rope["rope_type"] == "default":
        return None
    if rope["rope_type"] != "llama3":
        raise UserError(
            f"config.json: rope_type={rope['rope_type']!r} is not supported; "
            "this decoder has 'default' and 'llama3'"
        )
    return RopeScaling(
        factor=rope["factor"],
        low_frequency_factor=rope["low_freq_factor"],
        high_frequency_factor=rope["high_freq_factor"],
        original_max_positions=rope["original_max_position_embeddings"],
    )


def _check_sizes(hf: dict[str, Any]) -> None:
    """Raises UserError for sizes that no network has."""
    for field in _SIZES:
        size = hf.get(field)
        if size is not None and (type(size) is not int or size < 1):
            raise UserError(
                f"config.json: {field}={size!r} must be an integer greater than 0; fetch the "
                "model again"
            )
    heads, kv_heads = hf["num_attention_heads"], hf.get("num_key_value_heads") or 1
    if heads % kv_heads or (hf.get("head_dim") is None and hf["hidden_size"] % heads):
        raise UserError(
            f"config.json: hidden_size={hf['hidden_size']}, num_attention_heads={heads} and "
            f"num_key_value_heads={kv_heads} do not divide each other; fetch the model again"
        )


def _stored_dtype(hf: dict[str, Any]) -> str:
    dtype = hf.get("dtype") or hf.get("torch_dtype") or "float32"
    if dtype not in _DTYPES:
        raise UserError(
            f"config.json: dtype={dtype!r} is not supported; use a model in {', '.join(_DTYPES)}"
        )
    return dtype


def _architecture(hf: dict[str, Any]) -> str:
    return (hf.get("architectures") or [""])[0]


def _refuse_unknown(hf: dict[str, Any]) -> None:
    refused = {
        "hidden_act": ("silu",),
        "use_sliding_window": (False,),
        "mlp_bias": (False,),
        "quantization_config": (None,),
        "pretraining_tp": (1,),
    }
    for field, allowed in refused.items():
        value = hf.get(field, allowed[0])
        if value not in allowed:
            raise UserError(
                f"config.json: {field}={value!r} is not supported; this decoder needs "
                f"{allowed[0]!r}"
            )

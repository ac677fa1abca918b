"""config.json of published models, as far as it bears on the network: facts, written from memory.

Fields that say nothing about the arithmetic are there on purpose: they must not be refused.
"""

from typing import Any

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _of(family: str, sizes: tuple[int, ...], theta: float, most: int, **fields: Any) -> Any:
    """Returns the usual fields; sizes: vocabulary, width, mlp, layers, heads, kv heads."""
    vocabulary, width, mlp, layers, heads, kv_heads = sizes
    return {
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": mlp,
        "max_position_embeddings": most,
        "model_type": family,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": theta,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "vocab_size": vocabulary,
    } | fields


_LLAMA = {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
_LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_QWEN = {"sliding_window": None, "use_sliding_window": False, "rms_norm_eps": 1e-6}
_R1_QWEN = _QWEN | {"sliding_window": 4096, "use_mrope": False}
_PHI = {"attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
_PHI_CODE = {
    "AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
}
_PHI_4_MINI = {
    "auto_map": _PHI_CODE | {"AutoTokenizer": "Xenova/gpt-4o"},
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
}
_GEMMA = {
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_act": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10_000,
    "sliding_window": 512,
    "tie_word_embeddings": None,
}


def _longrope(count: int) -> dict[str, Any]:
    return {"type": "longrope", "long_factor": [1.1] * count, "short_factor": [1.0] * count}


PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": _of(
        "llama", (128256, 2048, 8192, 16, 32, 8), 5e5, 131072, **_LLAMA, head_dim=64,
        tie_word_embeddings=True, rope_scaling=_LLAMA3 | {"factor": 32.0},
    ),
    "Hermes-3-Llama-3.1-8B": _of(
        "llama", (128256, 4096, 14336, 32, 32, 8), 5e5, 131072, **_LLAMA, rope_scaling=_LLAMA3,
        _name_or_path="meta-llama/Meta-Llama-3.1-8B", eos_token_id=[128001, 128008, 128009],
    ),
    "DeepSeek-R1-Distill-Llama-8B": _of(
        "llama", (128256, 4096, 14336, 32, 32, 8), 5e5, 131072, **_LLAMA, rope_scaling=_LLAMA3,
        architectures=["LlamaForCausalLM"],
    ),
    "unsloth/Llama-3.2-3B-Instruct": _of(
        "llama", (128256, 3072, 8192, 28, 24, 8), 5e5, 131072, **_LLAMA, head_dim=128,
        tie_word_embeddings=True, rope_scaling=_LLAMA3, unsloth_fixed=True, pad_token_id=128004,
        unsloth_version="2024.11.9", _attn_implementation_autoset=True,
    ),
    "TinyLlama-1.1B": _of("llama", (32000, 2048, 5632, 22, 32, 4), 1e4, 2048, **_LLAMA),
    "Yi-1.5-9B": _of("llama", (64000, 4096, 11008, 48, 32, 4), 5e6, 4096, **_LLAMA),
    "vicuna-7b-v1.5": _of(
        "llama", (32000, 4096, 11008, 32, 32, 32), 1e4, 4096, num_key_value_heads=None,
        pad_token_id=0, torch_dtype="float16", max_sequence_length=2048,
    ),
    "SmolLM2-135M": _of(
        "llama", (49152, 576, 1536, 30, 9, 3), 1e5, 8192, **_LLAMA, is_llama_config=True,
        rope_interleaved=False, tie_word_embeddings=True,
        **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    ),
    "deepseek-coder-6.7b": _of(
        "llama", (32256, 4096, 11008, 32, 32, 32), 1e5, 16384, pretraining_tp=1,
        rope_scaling={"factor": 4.0, "type": "linear"},
    ),
    "Qwen2.5-7B-Instruct": _of(
        "qwen2", (152064, 3584, 18944, 28, 28, 4), 1e6, 32768, **_QWEN | {"sliding_window": 131072},
        max_window_layers=28,
    ),
    "Qwen2.5-7B-Instruct with YaRN": _of(
        "qwen2", (152064, 3584, 18944, 28, 28, 4), 1e6, 32768, **_QWEN,
        rope_scaling={
            "factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn",
        },
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B": _of(
        "qwen2", (151936, 1536, 8960, 28, 12, 2), 1e4, 131072, **_R1_QWEN, max_window_layers=21,
    ),
    "Qwen3-0.6B": _of(
        "qwen3", (151936, 1024, 3072, 28, 16, 8), 1e6, 40960, **_QWEN, attention_bias=False,
        head_dim=128, max_window_layers=28, tie_word_embeddings=True,
    ),
    "Mistral-7B-v0.1": _of(
        "mistral", (32000, 4096, 14336, 32, 32, 8), 1e4, 32768, sliding_window=4096,
    ),
    "Mistral-7B-v0.3": _of(
        "mistral", (32768, 4096, 14336, 32, 32, 8), 1e6, 32768, sliding_window=None,
    ),
    "Mistral-Nemo-2407": _of(
        "mistral", (131072, 5120, 14336, 40, 32, 8), 1e6, 131072, sliding_window=None, head_dim=128,
    ),
    "Ministral-8B-2410": _of(
        "mistral", (131072, 4096, 12288, 36, 32, 8), 1e8, 32768, sliding_window=32768, head_dim=128,
    ),
    "zephyr-7b-beta": _of(
        "mistral", (32000, 4096, 14336, 32, 32, 8), 1e4, 32768, sliding_window=4096,
        pad_token_id=2, _name_or_path="mistralai/Mistral-7B-v0.1",
    ),
    "SmolLM3-3B": _of(
        "smollm3", (128256, 2048, 11008, 36, 16, 4), 5e6, 65536, attention_bias=False,
        layer_types=[_FULL] * 36, max_window_layers=28, mlp_bias=False, no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0] * 9, pretraining_tp=2, sliding_window=None,
        use_sliding_window=False, rms_norm_eps=1e-6, tie_word_embeddings=None,
    ),
    "OLMo-2-1124-7B": _of(
        "olmo2", (100352, 4096, 11008, 32, 32, 32), 5e5, 4096, attention_bias=False,
        rms_norm_eps=1e-6, torch_dtype="float32",
    ),
    "Olmo-3-7B": _of(
        "olmo3", (100278, 4096, 11008, 32, 32, 32), 5e5, 65536, attention_bias=False,
        layer_types=[_SLIDING, _SLIDING, _SLIDING, _FULL] * 8, sliding_window=4096,
        rope_scaling={
            "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
            "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
    ),
    "Phi-3-mini-4k-instruct": _of(
        "phi3", (32064, 3072, 8192, 32, 32, 32), 1e4, 4096, **_PHI, auto_map=_PHI_CODE,
        original_max_position_embeddings=4096, sliding_window=2047,
    ),
    "Phi-3-mini-128k-instruct": _of(
        "phi3", (32064, 3072, 8192, 32, 32, 32), 1e4, 131072, **_PHI, auto_map=_PHI_CODE,
        original_max_position_embeddings=4096, sliding_window=262144,
        rope_scaling=_longrope(48),
    ),
    "phi-4": _of(
        "phi3", (100352, 5120, 17920, 40, 40, 10), 250000, 16384, **_PHI, sliding_window=None,
        original_max_position_embeddings=16384,
    ),
    "Phi-4-mini-instruct": _of(
        "phi3", (200064, 3072, 8192, 32, 24, 8), 1e4, 131072, **_PHI, **_PHI_4_MINI,
        rope_scaling=_longrope(48),
    ),
    "gemma-3-270m": _of(
        "gemma3_text", (262144, 640, 2048, 18, 4, 1), 1e6, 32768, **_GEMMA,
        _sliding_window_pattern=6, use_bidirectional_attention=False,
        layer_types=([_SLIDING] * 5 + [_FULL]) * 3,
    ),
    "gemma-3-1b": _of(
        "gemma3_text", (262144, 1152, 6912, 26, 4, 1), 1e6, 32768, **_GEMMA,
        cache_implementation="hybrid", sliding_window_pattern=6,
    ),
    "Qwen3-30B-A3B": _of(
        "qwen3_moe", (151936, 2048, 6144, 48, 32, 4), 1e6, 40960, attention_bias=False,
        decoder_sparse_step=1, head_dim=128, max_window_layers=48, mlp_only_layers=[],
        moe_intermediate_size=768, norm_topk_prob=True, num_experts=128, num_experts_per_tok=8,
        output_router_logits=False, router_aux_loss_coef=0.001, sliding_window=None,
        use_sliding_window=False,
    ),
    "Mixtral-8x7B-Instruct-v0.1": _of(
        "mixtral", (32000, 4096, 14336, 32, 32, 8), 1e6, 32768, num_experts_per_tok=2,
        num_local_experts=8, output_router_logits=False, router_aux_loss_coef=0.02,
        sliding_window=None,
    ),
    "OLMoE-1B-7B-0924": _of(
        "olmoe", (50304, 2048, 1024, 16, 16, 16), 1e4, 4096, attention_bias=False, clip_qkv=None,
        norm_topk_prob=False, num_experts=64, num_experts_per_tok=8, output_router_logits=False,
        router_aux_loss_coef=0.01,
    ),
    "granite-3.3-2b": _of(
        "granite", (49159, 2048, 8192, 40, 32, 8), 1e7, 131072, attention_bias=False,
        attention_multiplier=0.015625, embedding_multiplier=12.0, logits_scaling=8.0,
        mlp_bias=False, residual_multiplier=0.22, tie_word_embeddings=True,
    ),
}  # fmt: skip
"""Name → config.json."""

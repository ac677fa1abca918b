"""No field of config.json is ignored silently."""

from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.models import families
from gad_jax.models.families.fields import Fields
from tests.models.networks import NETWORKS

LLAMA = NETWORKS["llama-biases"]


def refusal(hf: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        families.read(hf)
    return str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"pretraining_tp": 2},
        {"_name_or_path": "x/y", "use_cache": False, "transformers_version": "4.41.0"},
        {"bos_token_id": 1, "image_token_id": 3, "unsloth_version": "2025.1"},
        {"attention_dropout": 0.1, "rope_interleaved": False, "is_llama_config": True},
        {"a_feature_of_tomorrow": None},
        {"architectures": ["LlamaForCausalLM"], "id2label": {"0": "a"}},
        {"architectures": "LlamaForCausalLM", "max_sequence_length": 2048},
        {"use_mrope": False, "lm_head_bias": False, "full_attn_mod": 1, "interpolate_factor": 1},
        {"torch_dtype": "torch.float32", "gradient_checkpointing": False},
    ],
)
def test_what_changes_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert families.read(LLAMA | fields) == families.read(LLAMA)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_parallel_residual", True),
        ("attention_chunk_size", 8192),
        ("clip_qkv", 8.0),
        ("embedding_multiplier", 12.0),
        ("final_logit_softcapping", 30.0),
        ("query_pre_attn_scalar", 256),
        ("alibi", True),
        ("no_rope_layers", [1, 0]),
        ("num_experts", 8),
        ("layer_norm_eps", 1e-5),
        ("use_mrope", True),
        ("rope_interleaved", True),
        ("lm_head_bias", True),
        ("full_attn_mod", 2),
    ],
)
def test_a_field_that_nothing_reads_is_refused_by_name(field: str, value: Any) -> None:
    message = refusal(LLAMA | {field: value})
    assert message.startswith(f"config.json: the field {field}={value!r} is unknown to family")
    assert message.endswith("remove it from config.json if you know that it does not")


def test_kinds_of_values_are_checked() -> None:
    assert "hidden_size='32' must be an integer" in refusal(LLAMA | {"hidden_size": "32"})
    assert "hidden_size=True must be an integer" in refusal(LLAMA | {"hidden_size": True})
    assert "mlp_bias='yes' must be true or false" in refusal(LLAMA | {"mlp_bias": "yes"})
    assert "quantization_config=" in refusal(LLAMA | {"quantization_config": {"bits": 4}})
    with pytest.raises(KeyError, match="hidden_size"):
        families.read({k: v for k, v in LLAMA.items() if k != "hidden_size"})


ARCHITECTURES = [
    ({"architectures": ["LlamaForTokenClassification"]}, "architectures=['LlamaForTokenCl"),
    ({"architectures": ["LlamaForCausalLM", "LlamaForSequenceClassification"]}, "architectures=["),
    ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 3}, "num_labels=3"),
    (
        {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b"}},
        "id2label has 2 labels, but a score has 1",
    ),
]


@pytest.mark.parametrize(("fields", "message"), ARCHITECTURES)
def test_other_heads_are_refused(fields: dict[str, Any], message: str) -> None:
    assert message in refusal(LLAMA | fields)


@pytest.mark.parametrize("name", ["qwen2-yarn", "qwen3-biases", "mistral", "smollm3"])
def test_null_heads_are_as_many_as_the_queries(name: str) -> None:
    # a missing field is the class's default: 32, 8 or 4
    assert families.read(NETWORKS[name] | {"num_key_value_heads": None}).kv_heads == 4


def test_gemma3_counts_layers_by_the_public_field_alone() -> None:
    hf = NETWORKS["gemma3"] | {"sliding_window_pattern": None, "_sliding_window_pattern": 2}
    assert families.read(hf).pattern == ()  # one of six layers is full, and there are three
    biases = families.read(NETWORKS["gemma3"] | {"attention_bias": True})
    assert (biases.qkv_bias, biases.output_bias) == (True, True)
    assert families.read(families.write(biases)) == biases


def test_a_null_is_a_missing_field() -> None:
    fields = Fields({"a": None, "b": 3})
    assert fields.count("a", 7) == 7
    assert fields.count("b") == 3
    fields.refuse_unread()
    with pytest.raises(UserError, match="c=1 is unknown"):
        Fields({"c": 1}).refuse_unread()


def test_fields_under_other_names_are_read_and_counted() -> None:
    hf = LLAMA | {"acme_width": LLAMA["hidden_size"], "acme_version": 1}
    del hf["hidden_size"]
    fields = Fields(hf)
    fields.only("acme_version", 1)
    usual = fields.renamed({"acme_width": "hidden_size"})
    assert usual.count("hidden_size") == LLAMA["hidden_size"]
    assert families.FAMILIES["llama"].read(usual).width == LLAMA["hidden_size"]
    with pytest.raises(UserError, match="has acme_width and hidden_size, which are the same"):
        Fields(hf | {"hidden_size": 8}).renamed({"acme_width": "hidden_size"})
    with pytest.raises(UserError, match="the field acme_width="):
        families.FAMILIES["llama"].read(Fields(hf | {"hidden_size": 8}))

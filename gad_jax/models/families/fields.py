"""A config.json whose every field is accounted for: read by its family, known to change nothing, or
refused by name."""

import math
import re
from collections.abc import Mapping
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.base.numbers import as_float32

MISSING: Any = object()

_HARMLESS = frozenset(
    """
    architectures attention_bias attention_dropout attention_probs_dropout_prob
    attn_implementation auto_map
    bad_words_ids begin_suppress_tokens bos_token cache_implementation chunk_size_feed_forward
    classifier_dropout diversity_penalty do_sample dtype early_stopping embd_pdrop
    encoder_no_repeat_ngram_size eos_token exponential_decay_length_penalty finetuning_task
    gradient_checkpointing
    hidden_dropout id2label initializer_factor initializer_range is_decoder is_llama_config
    keys_to_ignore_at_inference label2id length_penalty max_length max_sequence_length
    max_window_layers min_length mlp_bias model_max_length model_parallel
    model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_router_logits
    output_scores pad_token prefix pretraining_tp problem_type pruned_heads remove_invalid_values
    repetition_penalty resid_pdrop return_dict return_dict_in_generate
    router_aux_loss_coef router_jitter_noise score_bias suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p unk_token unsloth_fixed unsloth_version use_bfloat16
    use_cache
    """.split()  # noqa: SIM905
)
"""Fields that say nothing about the forward pass of a decoder in evaluation mode. (Dropout and the
router's loss are training's, and this project trains without them. Where a family does not read
whether there are biases, the stored tensors decide: one that nothing takes is refused.)"""

_NEUTRAL = {
    "alibi": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "num_nextn_predict_layers": 0,
    "parallel_attn": False,
    "qk_layernorm": False,
    "rope_interleaved": False,
    "use_mrope": False,
    "use_parallel_residual": False,
    "use_qk_norm": False,
}
"""Features that some published configs name and that are off with this value."""

# Identifiers of special tokens; versions; what transformers itself keeps to itself.
_HARMLESS_PATTERN = re.compile(r"_.*|.*_token_ids?|.*_token_index|.*_version|transformers\.js_\w+")


def is_harmless(name: str) -> bool:
    """Returns whether a field of this name says nothing about what a network computes."""
    return name in _HARMLESS or _HARMLESS_PATTERN.fullmatch(name) is not None


class Fields:
    """The fields of a config.json; the getters check a value and note that it was read."""

    def __init__(self, hf: dict[str, Any]):
        self.hf = hf
        self._read: set[str] = set()

    def renamed(self, names: Mapping[str, str]) -> "Fields":
        """Returns the fields with some under other names, by their names in config.json; what was
        read stays read."""
        both = [(new, old) for old, new in names.items() if new in self.hf and old in self.hf]
        if both:
            new, old = both[0]
            raise UserError(f"config.json has {old} and {new}, which are the same; leave one out")
        fields = Fields({names.get(name, name): value for name, value in self.hf.items()})
        fields._read = {names.get(name, name) for name in self._read}
        return fields

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value; the default where the field is missing or null."""
        self._read.add(name)
        value = self.hf.get(name)
        if value is None and default is MISSING:
            raise KeyError(name)
        return default if value is None else value

    def count(self, name: str, default: Any = MISSING) -> int:
        """Returns an integer greater than 0."""
        value = self.get(name, default)
        if type(value) is not int or value < 1:
            raise UserError(
                f"config.json: {name}={value!r} must be an integer greater than 0; fetch the "
                "model again"
            )
        return value

    def number(self, name: str, default: Any = MISSING) -> float:
        """Returns a finite number greater than 0."""
        return positive(name, self.get(name, default))

    def flag(self, name: str, default: bool) -> bool:
        """Returns true or false."""
        value = self.get(name, default)
        if type(value) is not bool:
            raise UserError(
                f"config.json: {name}={value!r} must be true or false; fetch the model again"
            )
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses a value other than the allowed ones; a missing field or null is fine."""
        value = self.get(name)
        if value is not None and value not in allowed:
            raise UserError(
                f"config.json: {name}={value!r} is not supported; this decoder needs "
                f"{' or '.join(map(repr, allowed)) or 'null'}"
            )

    def refuse_unread(self) -> None:
        """Refuses fields that nothing has read, unless they are known to change nothing."""
        for name, value in self.hf.items():
            known = name in self._read or is_harmless(name) or value == _NEUTRAL.get(name)
            if not known and value is not None:
                raise UserError(
                    f"config.json: the field {name}={_shortened(value)} is unknown to family "
                    f"{self.hf.get('model_type')!r}, and it may change what the network computes; "
                    "remove it from config.json if you know that it does not"
                )


def positive(name: str, value: Any) -> float:
    """Returns a finite number greater than 0 as a float; UserError names the field.

    In float32 it is that too: 1e-50 would be 0 there.
    """
    right = isinstance(value, int | float) and not isinstance(value, bool)
    if not right or not 0 < as_float32(value) < math.inf:
        raise UserError(
            f"config.json: {name}={value!r} must be a finite number greater than 0; fetch the "
            "model again"
        )
    return float(value)


def _shortened(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:59]}…"

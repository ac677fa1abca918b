"""Fields of requests that this server does not use: those that change nothing, and the others.

Other servers know them: OpenAI, vLLM, SGLang, llama.cpp and TGI. A field that is in no table here
and not in `wire` is refused, too.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from gad_jax.serve.errors import Refused

LONGEST_NAME = 64

HARMLESS = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prediction"),
        *("prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
        *("request_id", "rid", "cache_prompt", "keep_alive", "spaces_between_special_tokens"),
    }
)
"""They name the request or speed it up; they never change the answer."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # tools, formats and media
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "documents": (None, []),
    "web_search_options": (None,),
    "verbosity": (None, "medium"),
    "reasoning_effort": (None,),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), (None,)),
    **dict.fromkeys(("structured_outputs", "structural_tag", "json_schema", "grammar"), (None, "")),
    **dict.fromkeys(("regex", "ebnf", "guided_decoding_backend", "stop_regex"), (None, "")),
    # sampling
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "repeat_penalty": (None, 1),
    "length_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "typical_p": (None, 1),
    "tfs_z": (None, 1),
    "top_a": (None, 0),
    "top_n_sigma": (None, -1, 0),
    "xtc_probability": (None, 0),
    "dry_multiplier": (None, 0),
    "dynatemp_range": (None, 0),
    "mirostat": (None, 0),
    "watermark": (None, False),
    "use_beam_search": (None, False),
    "early_stopping": (None, False),
    "bad_words": (None, []),
    "allowed_token_ids": (None, []),
    "logits_processors": (None, []),
    "min_tokens": (None, 0),
    "min_new_tokens": (None, 0),
    "thinking_token_budget": (None,),
    # what is returned
    "top_logprobs": (None, 0),
    "n_probs": (None, 0),
    "prompt_logprobs": (None,),
    "return_token_ids": (None, False),
    "return_tokens": (None, False),
    "return_tokens_as_token_ids": (None, False),
    "return_hidden_states": (None, False),
    "return_full_text": (None, False),
    "timings_per_token": (None, False),
    "details": (None, False),
    "decoder_input_details": (None, False),
    "include_stop_str_in_output": (None, False),
    "no_stop_trim": (None, False),
    "skip_special_tokens": (None, True),
    "include_reasoning": (None, True),
    "separate_reasoning": (None, True),
    "stream_reasoning": (None, True),
    "reasoning_format": (None, "auto", "deepseek"),
    # the prompt
    "truncate": (None,),
    "truncate_prompt_tokens": (None,),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "chat_template": (None, ""),
    "mm_processor_kwargs": (None, {}),
    "cache_salt": (None,),
    # the server
    "priority": (None, 0),
    "lora": (None, []),
    "lora_path": (None,),
    "id_slot": (None, -1),
    "kv_transfer_params": (None,),
    "vllm_xargs": (None, {}),
    "session_params": (None,),
    "custom_params": (None,),
}
"""Fields at the values that change nothing; at other values they are not supported."""

NAMES = {
    **dict.fromkeys(("max_new_tokens", "n_predict", "num_predict"), "max_tokens"),
    **dict.fromkeys(("max_output_tokens", "max_length"), "max_tokens"),
    **dict.fromkeys(("stop_sequences", "stop_strings", "stop_words"), "stop"),
    **dict.fromkeys(("enable_thinking", "thinking", "think"), "chat_template_kwargs"),
    "random_seed": "seed",
    "system": "a message with the role system",
    "input": "messages",
}
"""What the fields of other servers are called here."""


def check(
    given: Mapping[str, Any], own: Collection[str], more: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raises Refused for a field that would change the answer, or that nobody knows.

    `own` are the fields that this endpoint uses, and `more` its neutral values next to NEUTRAL.
    """
    neutral = {**NEUTRAL, **more}
    for name, value in given.items():
        if name in HARMLESS or (name in neutral and value in neutral[name]):
            continue
        if name == "logit_bias" and isinstance(value, dict) and not any(value.values()):
            continue
        shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
        if name in neutral:
            raise Refused(400, f"{shown} is not supported; leave it out", "unsupported", shown)
        close = difflib.get_close_matches(shown, own, 1, 0.8)
        meant = NAMES.get(name) or (close[0] if close else "")
        advice = f"did you mean {meant}?" if meant in own else "leave it out"
        raise Refused(400, f"{shown} is unknown to this server; {advice}", "unknown_field", shown)

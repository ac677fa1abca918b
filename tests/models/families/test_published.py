"""Published models: each config.json is read as transformers does, and survives the way out."""

import json
from pathlib import Path
from typing import Any

import pytest

from gad_jax.models import families, weights
from gad_jax.models.config import Llama3, LongRope, Yarn
from tests.models.published import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read_and_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    config = weights.read_config(tmp_path)
    written = json.loads(json.dumps(families.write(config)))
    assert families.read(written) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_the_same_sizes(name: str) -> None:
    from transformers import AutoConfig

    hf = {k: v for k, v in PUBLISHED[name].items() if v is not None}
    ours, theirs = families.read(hf), AutoConfig.for_model(**json.loads(json.dumps(hf)))
    same = {
        "num_key_value_heads": ours.kv_heads,
        "tie_word_embeddings": ours.tied,
        "rms_norm_eps": ours.norm_epsilon,
        "sliding_window": max(kind.window for kind in ours.kinds) or None,
        "head_dim": ours.head_width,
    }
    for field, value in same.items():
        found = getattr(theirs, field, None)
        if found is None and field == "head_dim":
            found = ours.width // ours.heads
        assert found == value, field


FACTS: list[tuple[str, Any]] = [
    ("vicuna-7b-v1.5", lambda c: c.kv_heads == 32),
    ("Qwen2.5-7B-Instruct", lambda c: c.kinds[0].window == 0),
    ("DeepSeek-R1-Distill-Qwen-1.5B", lambda c: [k.window for k in c.kinds] == [0]),
    ("Mistral-7B-v0.1", lambda c: c.kinds[0].window == 4096),
    ("Mistral-Nemo-2407", lambda c: (c.head_width, c.kinds[0].window) == (128, 0)),
    ("SmolLM3-3B", lambda c: c.tied and [c.kind(n).rope is None for n in (2, 3)] == [False, True]),
    ("gemma-3-1b", lambda c: [n for n in range(26) if not c.kind(n).window] == [5, 11, 17, 23]),
    ("gemma-3-270m", lambda c: c.tied and c.kind(0).rope.theta == 1e4),
    ("Llama-3.2-1B", lambda c: c.kinds[0].rope.scaling == Llama3(32.0, 1.0, 4.0, 8192)),
    ("Qwen2.5-7B-Instruct with YaRN", lambda c: isinstance(c.kinds[0].rope.scaling, Yarn)),
    ("Olmo-3-7B", lambda c: (c.kind(0).rope.scaling, c.kind(3).window) == (None, 0)),
    ("Phi-3-mini-128k-instruct", lambda c: isinstance(c.kinds[0].rope.scaling, LongRope)),
    (
        "Phi-4-mini-instruct",
        lambda c: (c.kinds[0].rope.rotary_width, c.max_positions) == (96, 4096),
    ),
    ("phi-4", lambda c: (c.kinds[0].rope.scaling, c.max_positions) == (None, 16384)),
    ("granite-3.3-2b", lambda c: (c.logit_divisor, c.attention_scale) == (8.0, 0.015625)),
]


@pytest.mark.parametrize(("name", "holds"), FACTS)
def test_facts_of_published_models(name: str, holds: Any) -> None:
    assert holds(families.read(PUBLISHED[name]))

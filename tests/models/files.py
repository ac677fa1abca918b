"""Directories of weights: what stands in them, how to change them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from transformers import AutoTokenizer

from gad_jax.models import decoder
from gad_jax.models.carried import Carried
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import FAMILIES
from gad_jax.types import Params

VARIANTS = [(family, tied) for family in FAMILIES for tied in (True, False)]
END, PAD, START = 258, 256, 257
END_TOKENS = (END, PAD)
FILE = "model.safetensors"

# Two networks of float32 that hold equal weights: sums in another order, as in test_decoder.py.
PARITY = 1e-4


def edit_config(directory: Path, **fields: Any) -> None:
    edit_json(directory / "config.json", **fields)


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def as_score(config: DecoderConfig, params: Params) -> tuple[DecoderConfig, Params]:
    params = {name: part for name, part in params.items() if name != "head"}
    params["score"] = decoder.init_score(config, jax.random.key(1), 0.3)
    params["score"]["bias"] = jnp.asarray([0.375])
    return dataclasses.replace(config, head="score"), params


def carried_from(directory: Path, end_tokens: tuple[int, ...] = END_TOKENS) -> Carried:
    """Returns what an export carries over from a directory, as a run has it."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return Carried(directory, tokenizer, end_tokens, directory)

"""The static description of a network."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of long rotary wavelengths (`rope_type: llama3` in Hugging Face)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides the shape and the arithmetic of a network."""

    family: str
    vocabulary: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    rope_theta: float
    norm_epsilon: float
    max_positions: int
    rope_scaling: RopeScaling | None = None
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    stored_dtype: str = "float32"
    """Dtype of the weights in the directory they came from; exports keep it."""
    head: Literal["vocabulary", "score"] = "vocabulary"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["full", "dots", "none"] = "full"

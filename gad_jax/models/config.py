"""The static description of a network: `DecoderConfig`. No arrays, no jax.

`families/` reads it from a Hugging Face config.json and writes it back.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of long rotary wavelengths (`rope_type: llama3` in Hugging Face).

    A frequency with fewer than `low_frequency_factor` periods in `original_max_positions` is
    divided by `factor`, one with more than `high_frequency_factor` is kept, and those between are
    interpolated. `layers.rotation` applies it.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides the shape and the arithmetic of a network.

    It is hashable, so that compiled functions take it as a static argument. Sizes are counts;
    `head_width` is the width of one attention head, which need not be `width / heads`.
    """

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
    """Whether the embedding also is the vocabulary head."""
    qkv_bias: bool = False
    qk_norm: bool = False
    stored_dtype: str = "float32"
    """Dtype of the weights in the directory they came from; exports keep it."""
    head: Literal["vocabulary", "score"] = "vocabulary"
    """A generator has a vocabulary head; a discriminator has a score head (one number)."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of matmuls and activations; parameters, norms, softmax and scores are float32."""
    remat: Literal["full", "dots", "none"] = "full"
    """What the backward pass computes again: everything, all but matmuls, or nothing."""

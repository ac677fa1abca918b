"""The static description of a network: `DecoderConfig`. No arrays.

`families/` reads it from a Hugging Face config.json and writes it back.
"""

import dataclasses
from typing import Literal

from gad_jax.distributed import devices


@dataclasses.dataclass(frozen=True)
class Linear:
    """Every rotary frequency is divided by `factor` (`rope_type: linear` in Hugging Face)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Llama 3's stretching of long rotary wavelengths (`rope_type: llama3`).

    A frequency with fewer than `low_frequency_factor` periods in `original_max_positions` is
    divided by `factor`, one with more than `high_frequency_factor` is kept, and those between are
    interpolated.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN (`rope_type: yarn`, arXiv:2309.00071): a ramp from kept to divided frequencies.

    A frequency with more than `beta_fast` periods in `original_max_positions` is kept, one with
    fewer than `beta_slow` is divided by `factor`. `truncate` rounds the ramp's ends to whole
    frequencies. Cosines and sines are multiplied by `attention_factor`.
    """

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class LongRope:
    """LongRoPE (`rope_type: longrope`): each frequency is divided by a factor of its own.

    `short_factors` serve sequences of up to `original_max_positions` tokens. The long ones serve
    longer sequences, which this decoder refuses: a sequence that grows past the limit would need
    its cached keys computed again. They are kept for the export. Cosines and sines are multiplied
    by `attention_factor`.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    extended_positions: int
    """The model's longest sequence with the long factors."""
    attention_factor: float


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: frequency i is `theta` ** (-2 i / `rotary_width`), then scaled."""

    theta: float
    scaling: Linear | Llama3 | Yarn | LongRope | None = None
    rotary_width: int = 0
    """The first numbers of a head that are rotated; 0: all."""


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ between the layers of one network; weights have the same shapes in all."""

    rope: Rope | None
    """None: the layer has no positions (NoPE)."""
    window: int = 0
    """A token sees itself and the `window` - 1 tokens before it; 0: all before it."""


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of every layer's mlp (`models/experts.py`)."""

    count: int
    per_token: int
    """Experts that a token visits."""
    width: int
    """Of one expert, as `DecoderConfig.mlp_width` is of a dense mlp."""
    normalised: bool
    """Whether the weights of a token's experts are divided by their sum."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters: y = x W + (alpha / rank) (x A) B in the projections `targets`."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Names of a layer's projections: query, key, value, output, gate, up, down."""

    @property
    def scale(self) -> float:
        """What adapters are multiplied by."""
        return self.alpha / self.rank


def alike(theta: float) -> tuple[LayerKind, ...]:
    """Returns `DecoderConfig.kinds` of a network whose layers all see everything."""
    return (LayerKind(Rope(theta)),)


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
    norm_epsilon: float
    max_positions: int
    kinds: tuple[LayerKind, ...]
    """The different kinds of layers."""
    pattern: tuple[int, ...] = ()
    """The kind of each layer, as an index of `kinds`; empty: all are of the first."""
    tied: bool = False
    """Whether the embedding also is the vocabulary head."""
    qkv_bias: bool = False
    output_bias: bool = False
    """Whether attention's output projection has a bias."""
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"
    """RMS norm of queries and keys: of each head, or of all heads together."""
    norms: Literal["before", "after", "both"] = "before"
    """Where a layer's norms are: before attention and mlp, after them, or both (sandwich)."""
    norm_offset: float = 0.0
    """Norms multiply by their scale plus this (gemma stores the scale less 1)."""
    experts: Experts | None = None
    """None: the layers' mlps are dense. Otherwise no layer has `mlp_width`."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embedding_scale: float = 1.0
    """Embeddings are multiplied by this on their way in."""
    residual_scale: float = 1.0
    """The output of attention and mlp is multiplied by this before it is added."""
    attention_scale: float = 0.0
    """query · key is multiplied by this; 0: 1 / √head_width."""
    logit_divisor: float = 1.0
    stored_dtype: str = "float32"
    """Dtype of the weights in the directory they came from; exports keep it."""
    head: Literal["vocabulary", "score"] = "vocabulary"
    """A generator has a vocabulary head; a discriminator has a score head (one number)."""
    score_heads: int = 1
    """Score heads on the same hidden state: a discriminator in training may have several."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of matmuls and activations; parameters, norms, softmax and scores are float32."""
    matmul: Literal["auto", "bfloat16", "float8"] = "auto"
    """Operands of the layers' matmuls: in the compute dtype, or rounded. In bfloat16, which is for
    CPUs, those of the head are rounded too (`bfloat16.py`, `float8.py`)."""
    remat: Literal["full", "dots", "none"] = "full"
    """What the backward pass computes again: everything, all but matmuls, or nothing."""
    unroll: bool = False
    """Whether a pass over rows lists the layers one by one, and not as a loop over them."""

    lora: Lora | None = None
    """None: the network has no adapters, and all of it is trained."""
    quantisation: Literal["none", "int8", "nf4"] = "none"
    """How the kernels of the layers' projections are stored, in a base below adapters."""
    decode_weights: Literal["auto", "bfloat16", "int8"] = "auto"
    """How the decode copy stores these kernels: as above, in the compute dtype, or rounded. In
    bfloat16, which is for CPUs, the head is rounded too."""
    joined: bool = False
    """Whether a layer has one kernel for query, key and value, and one for gate and up."""
    turned: bool = False
    """Whether the kernels of the layers' projections are stored as [out, in] (`turned.py`)."""

    @property
    def merged(self) -> "DecoderConfig":
        """The same network with its adapters merged into the weights, which are floats; matmuls
        are in the compute dtype."""
        return dataclasses.replace(self, lora=None, quantisation="none", matmul="auto")

    @property
    def unrounded(self) -> "DecoderConfig":
        """The same network, whose decode copy is not rounded: that is for a run's own samples."""
        return dataclasses.replace(self, decode_weights="auto")

    @property
    def decoding(self) -> "DecoderConfig":
        """The network as it decodes: adapters are merged, unless the base is quantised. Kernels of
        floats are joined, and turned on a CPU."""
        if self.quantisation != "none":
            return self
        if self.decode_weights == "int8":
            return dataclasses.replace(self.merged, quantisation="int8")
        return dataclasses.replace(self.merged, joined=True, turned=devices.platform() == "cpu")

    def adapter(self, target: str) -> Lora | None:
        """Returns the adapter of a projection; None: it has none."""
        return self.lora if self.lora and target in self.lora.targets else None

    def kind(self, layer: int) -> LayerKind:
        """Returns the kind of a layer."""
        return self.kinds[self.pattern[layer] if self.pattern else 0]

"""The one decoder architecture: pre-norm, rotary positions, grouped-query attention, gated mlp.

Families (llama, qwen2, qwen3) differ by switches of `DecoderConfig`. The modules are Flax NNX,
used without state: a network is its config and a nested dict of arrays, and the public functions
take both. Layers are stacked on a leading axis and run under `jax.lax.scan`. Inside, activations
are kept two-dimensional, [tokens, width]: the gradient of a matrix product is faster so on a CPU.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gad_jax.distributed import sharding
from gad_jax.models import attention
from gad_jax.types import Params, Segments

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(query [n H C], key [n K C], value [n K C]) → (output [n H C], anything to collect)."""


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


_initial = nnx.initializers.normal(0.02)


class Norm(nnx.Module):
    """x / rms(x) · scale, computed in float32, returned in the dtype of x."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel (+ bias); the kernel's FSDP shards are gathered where it is used."""

    def __init__(self, rngs: nnx.Rngs, *sizes: tuple[str, int], bias: bool = False):
        (self.input, width_in), (self.output, width_out) = sizes
        self.kernel = nnx.Param(_initial(rngs.params(), (width_in, width_out)))
        if bias:
            self.bias = nnx.Param(jnp.zeros(width_out))
        self.has_bias = bias

    def __call__(self, x: Float[Array, "n in"]) -> Float[Array, "n out"]:
        kernel = sharding.gather(self.kernel[...].astype(x.dtype), self.input, self.output)
        output = None if self.output == "embed" else self.output
        y = jnp.einsum("nd,df->nf", x, kernel, out_sharding=sharding.spec("batch", output))
        return y + self.bias[...].astype(x.dtype) if self.has_bias else y


class Block(nnx.Module):
    """One layer. How queries meet keys is the caller's: packed rows, or a cache."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        embed, mlp = ("embed", c.width), ("mlp", c.mlp_width)
        heads, kv = ("heads", c.heads * c.head_width), ("kv_heads", c.kv_heads * c.head_width)
        self.attention_norm = Norm(c.width, c.norm_epsilon)
        self.query = Linear(rngs, embed, heads, bias=c.qkv_bias)
        self.key = Linear(rngs, embed, kv, bias=c.qkv_bias)
        self.value = Linear(rngs, embed, kv, bias=c.qkv_bias)
        self.output = Linear(rngs, heads, embed)
        if c.qk_norm:
            self.query_norm = Norm(c.head_width, c.norm_epsilon)
            self.key_norm = Norm(c.head_width, c.norm_epsilon)
        self.mlp_norm = Norm(c.width, c.norm_epsilon)
        self.gate = Linear(rngs, embed, mlp)
        self.up = Linear(rngs, embed, mlp)
        self.down = Linear(rngs, mlp, embed)

    def __call__(
        self, x: Float[Array, "n D"], rotation: tuple[Array, Array], attend: Attend
    ) -> tuple[Float[Array, "n D"], Any]:
        c = self.config
        h = self.attention_norm(x)
        query = _split(self.query(h), c.heads, "heads")
        key = _split(self.key(h), c.kv_heads, "kv_heads")
        value = _split(self.value(h), c.kv_heads, "kv_heads")
        if c.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        mixed, extra = attend(rotate(query, rotation), rotate(key, rotation), value)
        merged = mixed.reshape(
            x.shape[0], c.heads * c.head_width, out_sharding=sharding.spec("batch", "heads")
        )
        x = x + self.output(merged)
        h = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h)), extra


class Decoder(nnx.Module):
    """Embedding, stacked blocks, final norm, and a vocabulary or a score head."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.embedding = nnx.Param(_initial(rngs.params(), (config.vocabulary, config.width)))
        self.layers = jax.vmap(lambda r: Block(config, r))(rngs.split(config.layers))
        self.final_norm = Norm(config.width, config.norm_epsilon)
        if config.head == "score":
            self.score = Linear(rngs, ("scale", config.width), ("scale", 1), bias=True)
        elif not config.tied:
            self.head = Linear(rngs, ("embed", config.width), ("vocabulary", config.vocabulary))


def init(config: DecoderConfig, key: Array) -> Params:
    """Returns random parameters, for tests and benchmarks; real ones come from `weights.load`."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(key))))


def init_score(config: DecoderConfig, key: Array, stddev: float = 0.02) -> Params:
    """Returns a fresh score head: weights from N(0, stddev), bias 0 (section 2 of the paper)."""
    kernel = stddev * jax.random.normal(key, (config.width, 1), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(1, jnp.float32)}


def abstract(config: DecoderConfig) -> Params:
    """Returns the parameter tree as shapes, without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


@lru_cache
def block_graph(config: DecoderConfig) -> nnx.GraphDef:
    """Returns the static part of one layer; `nnx.merge` with its arrays gives a `Block`."""
    return nnx.graphdef(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))


def rotation(
    config: DecoderConfig, positions: Int[Array, " n"]
) -> tuple[Float[Array, "n C2"], Float[Array, "n C2"]]:
    """Returns cosines and sines of the rotary angles, float32, C2 = head width / 2."""
    exponents = jnp.arange(0, config.head_width, 2, dtype=jnp.float32) / config.head_width
    frequencies = 1.0 / config.rope_theta**exponents
    if s := config.rope_scaling:
        turns = s.original_max_positions * frequencies / (2 * jnp.pi)
        smooth = (turns - s.low_frequency_factor) / (
            s.high_frequency_factor - s.low_frequency_factor
        )
        smooth = jnp.clip(smooth, 0.0, 1.0)
        frequencies = smooth * frequencies + (1 - smooth) * frequencies / s.factor
    angles = positions[:, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "n heads C"], rotation: tuple[Float[Array, "n C2"], Float[Array, "n C2"]]
) -> Float[Array, "n heads C"]:
    """Returns x with its two halves rotated by the angles of its position, in float32."""
    cos, sin = (angle[:, None, :] for angle in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def embed(config: DecoderConfig, params: Params, tokens: Int[Array, " n"]) -> Float[Array, "n D"]:
    """Returns the embeddings of the tokens in the compute dtype."""
    table = sharding.gather(params["embedding"].astype(config.compute_dtype), "vocabulary", "embed")
    return table.at[tokens].get(out_sharding=sharding.spec("batch", None))


def final_norm(
    config: DecoderConfig, params: Params, x: Float[Array, "n D"]
) -> Float[Array, "n D"]:
    """Returns the hidden state after the last norm: what both heads read."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: Norm(config.width, config.norm_epsilon)))
    return nnx.merge(graph, params["final_norm"])(x)


def hidden(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "M T"],
    positions: Int[Array, "M T"],
    segments: Segments,
    collect_cache: bool = False,
) -> tuple[Float[Array, "M T D"], Any]:
    """Returns the last hidden states (after the final norm) and the cache.

    The cache is (keys, values), [L M K T C] each, with collect_cache, else None.
    """
    rows, length = tokens.shape
    flat = sharding.spec("batch")
    x = embed(config, params, tokens.reshape(rows * length, out_sharding=flat))
    angles = rotation(config, positions.reshape(rows * length, out_sharding=flat))
    mask = attention.visible(segments)

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, Any]:
        q = _rows(query, rows, "heads")
        k, v = (_rows(z, rows, "kv_heads") for z in (key, value))
        mixed = attention.attend(q, k, v, mask)
        cache = (k.swapaxes(1, 2), v.swapaxes(1, 2)) if collect_cache else None
        return mixed.reshape(query.shape, out_sharding=sharding.spec("batch", "heads", None)), cache

    def layer(x: Array, layer_params: Params) -> tuple[Array, Any]:
        with jax.named_scope("layer"):
            return nnx.merge(block_graph(config), layer_params)(x, angles, attend)

    x, cache = jax.lax.scan(_remat(layer, config.remat), x, params["layers"])
    x = final_norm(config, params, x)
    shape = (rows, length, config.width)
    return x.reshape(shape, out_sharding=sharding.spec("batch", None, None)), cache


def head(config: DecoderConfig, params: Params) -> Array:
    """Returns the parameter that projects to the vocabulary: the embedding itself where tied."""
    return params["embedding"] if config.tied else params["head"]["kernel"]


def head_axes(config: DecoderConfig) -> tuple[str, str]:
    """Returns the logical axes of `head`."""
    return ("vocabulary", "embed") if config.tied else ("embed", "vocabulary")


def head_kernel(config: DecoderConfig, head: Float[Array, "*head"]) -> Float[Array, "*head"]:
    """Returns `head` in the compute dtype with its FSDP shards gathered: what `project` takes."""
    return sharding.gather(head.astype(config.compute_dtype), *head_axes(config))


def project(
    config: DecoderConfig, x: Float[Array, "n D"], kernel: Float[Array, "*head"]
) -> Float[Array, "n V"]:
    """Returns float32 logits of hidden states; `kernel` comes from `head_kernel`."""
    product = "nd,vd->nv" if config.tied else "nd,dv->nv"
    out = sharding.spec("batch", "vocabulary")
    return jnp.einsum(product, x, kernel, out_sharding=out).astype(jnp.float32)


def logits(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "M T"],
    positions: Int[Array, "M T"],
    segments: Segments,
) -> Float[Array, "M T V"]:
    """Returns the float32 logits of every position: small inputs only, steps work in chunks."""
    x, _ = hidden(config, params, tokens, positions, segments)
    rows, length, width = x.shape
    flat = x.reshape(rows * length, width, out_sharding=sharding.spec("batch", None))
    y = project(config, flat, head_kernel(config, head(config, params)))
    out = sharding.spec("batch", None, "vocabulary")
    return y.reshape(rows, length, config.vocabulary, out_sharding=out)


def score(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "M T"],
    positions: Int[Array, "M T"],
    segments: Segments,
) -> Float[Array, "M T"]:
    """Returns the score at every position, float32; a response's score is that of its last token.

    The head works in float32: rounding scores to bfloat16 drowns a group's spread.
    """
    x, _ = hidden(config, params, tokens, positions, segments)
    head = params["score"]
    return jnp.sum(x.astype(jnp.float32) * head["kernel"][:, 0], axis=-1) + head["bias"]


def _remat(layer: Callable[..., Any], policy: str) -> Callable[..., Any]:
    if policy == "none":
        return layer
    policies = jax.checkpoint_policies
    saved = {
        "full": policies.nothing_saveable,
        "dots": policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable,
            policies.save_only_these_names(attention.SAVED),
        ),
    }
    # Inside a scan nothing can merge the second computation with the first.
    return jax.checkpoint(layer, policy=saved[policy], prevent_cse=False)


def _split(x: Float[Array, "n width"], heads: int, axis: str) -> Float[Array, "n heads C"]:
    shape = (x.shape[0], heads, x.shape[1] // heads)
    return x.reshape(shape, out_sharding=sharding.spec("batch", axis, None))


def _rows(x: Float[Array, "n heads C"], rows: int, axis: str) -> Float[Array, "M T heads C"]:
    shape = (rows, x.shape[0] // rows, *x.shape[1:])
    return x.reshape(shape, out_sharding=sharding.spec("batch", None, axis, None))

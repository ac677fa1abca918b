"""The layers of the decoder: norms, projections, rotary positions, the block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gad_jax.distributed import sharding
from gad_jax.models import attention
from gad_jax.models.config import DecoderConfig

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(query [n H C], key [n K C], value [n K C]) → (output [n H C], anything to collect)."""


initial = nnx.initializers.normal(0.02)


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
        self.kernel = nnx.Param(initial(rngs.params(), (width_in, width_out)))
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
        query = split(self.query(h), c.heads, "heads")
        key = split(self.key(h), c.kv_heads, "kv_heads")
        value = split(self.value(h), c.kv_heads, "kv_heads")
        if c.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        mixed, extra = attend(rotate(query, rotation), rotate(key, rotation), value)
        merged = mixed.reshape(
            x.shape[0], c.heads * c.head_width, out_sharding=sharding.spec("batch", "heads")
        )
        x = x + self.output(merged)
        h = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h)), extra


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


def remat(layer: Callable[..., Any], policy: str) -> Callable[..., Any]:
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


def split(x: Float[Array, "n width"], heads: int, axis: str) -> Float[Array, "n heads C"]:
    shape = (x.shape[0], heads, x.shape[1] // heads)
    return x.reshape(shape, out_sharding=sharding.spec("batch", axis, None))


def unflatten(x: Float[Array, "n heads C"], rows: int, axis: str) -> Float[Array, "M T heads C"]:
    shape = (rows, x.shape[0] // rows, *x.shape[1:])
    return x.reshape(shape, out_sharding=sharding.spec("batch", None, axis, None))

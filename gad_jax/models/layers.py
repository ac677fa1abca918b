"""The layers of the decoder: norm, linear projection, rotary positions, and the block of one layer.

How a block attends is the caller's: `decoder.py` passes attention over packed rows
(`attention.py`), `rollout/ring.py` attention over a KV cache. How the blocks are stacked and run is
in `decoder.py`.

Activations are two-dimensional here, [tokens, width], with heads split off as a third axis around
attention: on a CPU the gradient of a matmul of two-dimensional arrays is faster. `out_sharding`
arguments say how a result is split over the mesh, because the mesh's axes are explicit
(`distributed/sharding.py`); without a mesh they are None.
"""

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

Rotation = tuple[Float[Array, "n C2"], Float[Array, "n C2"]]
"""Cosines and sines of the rotary angles of n tokens; C2 = C / 2."""

initial_weights = nnx.initializers.normal(0.02)
"""Of networks without a checkpoint: tests and benchmarks."""


class Norm(nnx.Module):
    """x / rms(x) · scale, computed in float32, returned in the dtype of x."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        y = x.astype(jnp.float32)  # a mean of squares loses too much in bfloat16
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel (+ bias); `source` and `target` are (logical axis, size) of the kernel's axes.

    The kernel's FSDP shards are gathered where it is used, in the dtype of x: half the bytes in
    bfloat16.
    """

    def __init__(
        self, rngs: nnx.Rngs, source: tuple[str, int], target: tuple[str, int], bias: bool = False
    ):
        (self.input, width_in), (self.output, width_out) = source, target
        self.kernel = nnx.Param(initial_weights(rngs.params(), (width_in, width_out)))
        if bias:
            self.bias = nnx.Param(jnp.zeros(width_out))
        self.has_bias = bias

    def __call__(self, x: Float[Array, "n in"]) -> Float[Array, "n out"]:
        kernel = sharding.gather(self.kernel[...].astype(x.dtype), self.input, self.output)
        # "embed" is split by FSDP in parameters only; an activation's width never is.
        output = None if self.output == "embed" else self.output
        y = jnp.einsum("nd,df->nf", x, kernel, out_sharding=sharding.spec("batch", output))
        return y + self.bias[...].astype(x.dtype) if self.has_bias else y


class Block(nnx.Module):
    """One layer: attention and gated mlp, each behind a norm and added to its input (pre-norm).

    `attend` is the caller's: attention over packed rows, or over a KV cache.
    """

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
        self, x: Float[Array, "n D"], angles: Rotation, attend: Attend
    ) -> tuple[Float[Array, "n D"], Any]:
        c = self.config
        h = self.attention_norm(x)
        query = _split(self.query(h), c.heads, "heads")
        key = _split(self.key(h), c.kv_heads, "kv_heads")
        value = _split(self.value(h), c.kv_heads, "kv_heads")
        if c.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        mixed, collected = attend(rotate(query, angles), rotate(key, angles), value)
        merged = mixed.reshape(
            x.shape[0], c.heads * c.head_width, out_sharding=sharding.spec("batch", "heads")
        )
        x = x + self.output(merged)
        h = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h)), collected


def rotation(config: DecoderConfig, positions: Int[Array, " n"]) -> Rotation:
    """Returns cosines and sines of the rotary angles of these positions, float32 (RoPE).

    Positions beyond `config.max_positions` are not refused here: callers bound their lengths.
    """
    exponents = jnp.arange(0, config.head_width, 2, dtype=jnp.float32) / config.head_width
    frequencies = 1.0 / config.rope_theta**exponents
    if s := config.rope_scaling:
        # Periods that training at the original length has seen: a frequency with many is kept, one
        # with less than a few is divided, so that longer texts reach no angle that is new to it.
        periods = s.original_max_positions * frequencies / (2 * jnp.pi)
        kept = (periods - s.low_frequency_factor) / (
            s.high_frequency_factor - s.low_frequency_factor
        )
        kept = jnp.clip(kept, 0.0, 1.0)
        frequencies = kept * frequencies + (1 - kept) * frequencies / s.factor
    # In float32: bfloat16 has 8 bits, and positions above 256 would fall together.
    angles = positions[:, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "n heads C"], angles: Rotation) -> Float[Array, "n heads C"]:
    """Returns x rotated by the angles of its positions; computed in float32, in the dtype of x.

    Number i of a head is paired with number i + C/2, as in Hugging Face's Llama, and not with its
    neighbour, as in the RoPE paper (arXiv:2104.09864).
    """
    cos, sin = (angle[:, None, :] for angle in angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def remat(layer: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """Returns the layer, with its backward pass recomputing what `DecoderConfig.remat` says."""
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
    # prevent_cse puts barriers around the second computation, so that XLA does not merge it with
    # the first. Inside a scan it cannot, and the barriers would only hinder fusion.
    return jax.checkpoint(layer, policy=saved[policy], prevent_cse=False)


def _split(x: Float[Array, "n width"], heads: int, axis: str) -> Float[Array, "n heads C"]:
    """Returns x with its heads apart; `axis` is their logical axis."""
    shape = (x.shape[0], heads, x.shape[1] // heads)
    return x.reshape(shape, out_sharding=sharding.spec("batch", axis, None))


def unflatten(x: Float[Array, "n heads C"], rows: int, axis: str) -> Float[Array, "M T heads C"]:
    """Returns the tokens of M rows as rows again; `axis` is the logical axis of the heads."""
    shape = (rows, x.shape[0] // rows, *x.shape[1:])
    return x.reshape(shape, out_sharding=sharding.spec("batch", None, axis, None))

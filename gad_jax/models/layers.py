"""The layers of the decoder: norm, linear projection, and the block of one layer.

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
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gad_jax.distributed import sharding
from gad_jax.models import attention, bfloat16, float8, joined, quantised, turned
from gad_jax.models.config import DecoderConfig, Lora
from gad_jax.models.experts import Mixture
from gad_jax.models.rope import Rotation, rotate

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(query [n H C], key [n K C], value [n K C]) → (output [n H C], anything to collect)."""

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": jax.nn.gelu,
}

initial_weights = nnx.initializers.normal(0.02)
"""Of networks without a checkpoint: tests and benchmarks."""


PROJECTION = "projection"
"""Name of a projection's output, with its adapter, for `remat`."""


class Norm(nnx.Module):
    """x / rms(x) · (scale + offset), computed in float32, returned in the dtype of x."""

    def __init__(self, width: int, epsilon: float, offset: float = 0.0):
        self.scale = nnx.Param(jnp.full(width, 1.0 - offset))
        self.epsilon, self.offset = epsilon, offset

    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        y = x.astype(jnp.float32)  # a mean of squares loses too much in bfloat16
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale[...] + self.offset if self.offset else self.scale[...]
        return (y * scale).astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel (+ bias); `source` and `target` are (logical axis, size) of the kernel's axes.

    With an adapter, scale · (x @ A) @ B is added (`adapters.init` says how A and B start).

    The kernel's FSDP shards are gathered where it is used, in the dtype of x: half the bytes in
    bfloat16. One that is quantised ("int8", "nf4") is gathered as it is stored. With `matmul` of
    "bfloat16" the operands of all matmuls are rounded, with "float8" all but those of an adapter.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        source: tuple[str, int],
        target: tuple[str, int],
        bias: bool = False,
        lora: Lora | None = None,
        quantisation: str = "none",
        matmul: str = "auto",
        is_turned: bool = False,
    ):
        (self.input, width_in), (self.output, width_out) = source, target
        if is_turned:
            self.turned = nnx.Param(initial_weights(rngs.params(), (width_out, width_in)))
        elif quantisation == "none":
            self.kernel = nnx.Param(initial_weights(rngs.params(), (width_in, width_out)))
        else:
            self.kernel = quantised.Quantised(quantisation, width_in, width_out)
        if bias:
            self.bias = nnx.Param(jnp.zeros(width_out))
        if lora:
            self.lora_a = nnx.Param(jnp.zeros((width_in, lora.rank)))
            self.lora_b = nnx.Param(jnp.zeros((lora.rank, width_out)))
        self.has_bias, self.lora = bias, lora
        self.matmul = "turned" if is_turned else matmul

    def __call__(self, x: Float[Array, "n in"]) -> Float[Array, "n out"]:
        # "embed" is split by FSDP in parameters only; an activation's width never is.
        split = None if self.output == "embed" else self.output
        out = sharding.spec("batch", split)
        if self.matmul == "turned":
            kernel = sharding.gather(self.turned[...], self.output, self.input)
            y = turned.product(x, kernel, split)
        elif self.matmul == "float8":
            y = float8.matmul(x, self._kernel(x.dtype), out)
        else:
            y = self._product(x, self._kernel(x.dtype), out)
        if self.lora:
            a = sharding.gather(self.lora_a[...].astype(x.dtype), self.input, None)
            b = sharding.gather(self.lora_b[...].astype(x.dtype), None, self.output)
            narrow = self._product(x, a, sharding.spec("batch", None))
            y = y + self._product(narrow * jnp.asarray(self.lora.scale, x.dtype), b, out)
        y = checkpoint_name(y, PROJECTION)
        return y + self.bias[...].astype(x.dtype) if self.has_bias else y

    def _product(
        self, x: Float[Array, "n in"], kernel: Float[Array, "in out"], out: P | None
    ) -> Float[Array, "n out"]:
        """Returns x @ kernel, where no operand is rounded to 8 bits."""
        if self.matmul == "bfloat16":
            return bfloat16.matmul(x, kernel, out)
        return jnp.einsum("nd,df->nf", x, kernel, out_sharding=out)

    def _kernel(self, dtype: DTypeLike) -> Float[Array, "in out"]:
        if isinstance(self.kernel, quantised.Quantised):
            stored = {"codes": self.kernel.codes[...], "scales": self.kernel.scales[...]}
            return quantised.gathered(stored, dtype, self.input, self.output)
        return sharding.gather(self.kernel[...].astype(dtype), self.input, self.output)


class Block(nnx.Module):
    """One layer: attention and gated mlp, each with norms around it and added to its input.

    The mlp may be a mixture of experts.

    `attend` is the caller's: attention over packed rows, or over a KV cache.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        embed, mlp = ("embed", c.width), ("mlp", c.mlp_width)
        heads, kv = ("heads", c.heads * c.head_width), ("kv_heads", c.kv_heads * c.head_width)
        if c.joined:
            kv = ("kv_heads", joined.qkv_width(c))
            self.qkv = self._linear(rngs, "qkv", embed, kv, bias=c.qkv_bias)
        else:
            self.query = self._linear(rngs, "query", embed, heads, bias=c.qkv_bias)
            self.key = self._linear(rngs, "key", embed, kv, bias=c.qkv_bias)
            self.value = self._linear(rngs, "value", embed, kv, bias=c.qkv_bias)
        self.output = self._linear(rngs, "output", heads, embed, bias=c.output_bias)
        if c.qk_norm != "none":
            widths = (c.head_width,) * 2 if c.qk_norm == "head" else (heads[1], kv[1])
            self.query_norm, self.key_norm = map(self._norm, widths)
        if c.experts:
            self.experts = Mixture(c, c.experts, rngs)
        else:
            if c.joined:
                self.gate_up = joined.GateUp(c.width, c.mlp_width, c.mlp_bias, c.turned)
            else:
                self.gate = self._linear(rngs, "gate", embed, mlp, bias=c.mlp_bias)
                self.up = self._linear(rngs, "up", embed, mlp, bias=c.mlp_bias)
            self.down = self._linear(rngs, "down", mlp, embed, bias=c.mlp_bias)
        if c.norms != "after":
            self.attention_norm, self.mlp_norm = map(self._norm, (c.width, c.width))
        if c.norms != "before":
            self.attention_post_norm, self.mlp_post_norm = map(self._norm, (c.width, c.width))

    def _linear(self, rngs: nnx.Rngs, name: str, *axes: tuple[str, int], bias: bool) -> Linear:
        source, target = axes
        c, lora = self.config, self.config.adapter(name)
        return Linear(rngs, source, target, bias, lora, c.quantisation, c.matmul, c.turned)

    def _norm(self, width: int) -> Norm:
        return Norm(width, self.config.norm_epsilon, self.config.norm_offset)

    def __call__(
        self, x: Float[Array, "n D"], angles: Rotation | None, attend: Attend
    ) -> tuple[Float[Array, "n D"], Any]:
        before, after = (self.config.norms in (place, "both") for place in ("before", "after"))
        h, collected = self._attention(self.attention_norm(x) if before else x, angles, attend)
        x = x + self._scaled(self.attention_post_norm(h) if after else h)
        h = self._mlp(self.mlp_norm(x) if before else x)
        return x + self._scaled(self.mlp_post_norm(h) if after else h), collected

    def _attention(
        self, x: Float[Array, "n D"], angles: Rotation | None, attend: Attend
    ) -> tuple[Float[Array, "n D"], Any]:
        c = self.config
        query, key, value = self._projected(x)
        if c.qk_norm == "all":
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = _split(query, c.heads, "heads"), _split(key, c.kv_heads, "kv_heads")
        value = _split(value, c.kv_heads, "kv_heads")
        if c.qk_norm == "head":
            query, key = self.query_norm(query), self.key_norm(key)
        if c.attention_scale:  # kernels multiply by 1 / √C
            query = query * jnp.asarray(c.attention_scale * c.head_width**0.5, query.dtype)
        mixed, collected = attend(rotate(query, angles), rotate(key, angles), value)
        merged = mixed.reshape(
            x.shape[0], c.heads * c.head_width, out_sharding=sharding.spec("batch", "heads")
        )
        return self.output(merged), collected

    def _projected(self, x: Float[Array, "n D"]) -> tuple[Array, Array, Array]:
        """Returns query [n H·C], key and value [n K·C]."""
        if self.config.joined:
            return joined.split_qkv(self.config, self.qkv(x))
        return self.query(x), self.key(x), self.value(x)

    def _mlp(self, x: Float[Array, "n D"]) -> Float[Array, "n D"]:
        activate = _ACTIVATIONS[self.config.activation]
        if self.config.experts:
            return self.experts(x, activate)
        gate, up = self.gate_up(x) if self.config.joined else (self.gate(x), self.up(x))
        return self.down(activate(gate) * up)

    def _scaled(self, x: Float[Array, "n D"]) -> Float[Array, "n D"]:
        scale = self.config.residual_scale
        return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)


def remat(layer: Callable[..., Any], config: DecoderConfig) -> Callable[..., Any]:
    """Returns the layer, with its backward pass recomputing what `DecoderConfig.remat` says."""
    policy = config.remat
    if policy == "none":
        return layer
    policies = jax.checkpoint_policies
    # With adapters a projection is the sum of two matmuls; only the sum is saved.
    matmuls = (
        policies.save_only_these_names(PROJECTION)
        if config.lora
        else policies.dots_with_no_batch_dims_saveable
    )
    both = policies.save_from_both_policies
    saved = {
        "full": policies.nothing_saveable,
        "dots": both(
            matmuls, both(policies.save_only_these_names(attention.SAVED), attention.saved)
        ),
    }
    # prevent_cse puts barriers around the second computation, so that XLA does not merge it with
    # the first. Inside a loop it cannot, and the barriers would only hinder fusion.
    return jax.checkpoint(layer, policy=saved[policy], prevent_cse=config.unroll)


def _split(x: Float[Array, "n width"], heads: int, axis: str) -> Float[Array, "n heads C"]:
    """Returns x with its heads apart; `axis` is their logical axis."""
    shape = (x.shape[0], heads, x.shape[1] // heads)
    return x.reshape(shape, out_sharding=sharding.spec("batch", axis, None))


def unflatten(x: Float[Array, "n heads C"], rows: int, axis: str) -> Float[Array, "M T heads C"]:
    """Returns the tokens of M rows as rows again; `axis` is the logical axis of the heads."""
    shape = (rows, x.shape[0] // rows, *x.shape[1:])
    return x.reshape(shape, out_sharding=sharding.spec("batch", None, axis, None))

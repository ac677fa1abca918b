"""Projections that decoding computes in one matmul: query, key and value; gate and up.

Every step of the decode loop reads all weights for a few tokens, so fewer and larger matmuls are
faster. Joined kernels are in the decode copy alone (`rollout/prefill.py`). They are ordered so that
each device of the tensor axis holds columns of all parts, and no device needs those of another:

    qkv      [D, K·(H/K + 2)·C]  for each key/value head its query heads, its key and its value
    gate_up  [D, 2, F]           split over F

On a CPU the kernels of a layer are turned besides: their outputs come first (`turned.py`).
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gad_jax.distributed import sharding
from gad_jax.models import turned
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Params

_QKV = ("query", "key", "value")
_GATE_UP = ("gate", "up")


class GateUp(nnx.Module):
    """The gate and up projections of an mlp, [n D] → [n F] each."""

    def __init__(self, width: int, mlp_width: int, bias: bool, is_turned: bool):
        if is_turned:
            self.turned = nnx.Param(jnp.zeros((2, mlp_width, width)))
        else:
            self.kernel = nnx.Param(jnp.zeros((width, 2, mlp_width)))
        if bias:
            self.bias = nnx.Param(jnp.zeros((2, mlp_width)))
        self.has_bias, self.is_turned = bias, is_turned

    def __call__(self, x: Float[Array, "n D"]) -> tuple[Float[Array, "n F"], Float[Array, "n F"]]:
        if self.is_turned:
            kernel = sharding.gather(self.turned[...], None, "mlp", "embed")
            y = turned.product(x, kernel, None, "mlp")
        else:
            kernel = sharding.gather(self.kernel[...].astype(x.dtype), "embed", None, "mlp")
            out = sharding.spec("batch", None, "mlp")
            y = jnp.einsum("nd,dpf->npf", x, kernel, out_sharding=out)
        y = y + self.bias[...].astype(x.dtype) if self.has_bias else y
        return y[:, 0], y[:, 1]


def qkv_width(config: DecoderConfig) -> int:
    """Returns the outputs of query, key and value together."""
    return (config.heads + 2 * config.kv_heads) * config.head_width


def split_qkv(
    config: DecoderConfig, y: Float[Array, "n joined"]
) -> tuple[Float[Array, "n heads"], Float[Array, "n kv"], Float[Array, "n kv"]]:
    """Returns query, key and value of the joined projection's output."""
    n, kv, width = y.shape[0], config.kv_heads, config.head_width
    group = config.heads // kv
    shape = (n, kv, group + 2, width)
    y = y.reshape(shape, out_sharding=sharding.spec("batch", "kv_heads", None, None))

    def flat(part: Array, axis: str) -> Array:
        return part.reshape(n, part.size // n, out_sharding=sharding.spec("batch", axis))

    query = flat(y[:, :, :group], "heads")
    return query, flat(y[:, :, group], "kv_heads"), flat(y[:, :, group + 1], "kv_heads")


def join(config: DecoderConfig, layer: Params) -> Params:
    """Returns the parameters of one layer for `config.decoding`, which are floats and gathered.

    A mixture of experts keeps its kernels; so does a layer whose kernels are quantised.
    """
    decoding = config.decoding
    if not decoding.joined:
        return layer
    rest = {name: part for name, part in layer.items() if name not in (*_QKV, *_GATE_UP)}
    rest["qkv"] = {name: _qkv(config, layer, name) for name in layer["query"]}
    if "gate" in layer:
        rest["gate_up"] = {name: _gate_up(layer, name) for name in layer["gate"]}
    if not decoding.turned:
        return rest
    return {name: _turned(part) if "kernel" in part else part for name, part in rest.items()}


def _turned(part: Params) -> Params:
    """Returns a projection's parameters with the outputs of its kernel first."""
    others = {name: leaf for name, leaf in part.items() if name != "kernel"}
    return others | {"turned": jnp.moveaxis(part["kernel"], 0, -1)}


def _qkv(config: DecoderConfig, layer: Params, name: str) -> Float[Array, "*D joined"]:
    """Returns the joined kernels or biases."""
    kv = config.kv_heads
    parts = [layer[part][name] for part in _QKV]
    rows = parts[0].shape[:-1]
    none = (None,) * len(rows)
    apart = sharding.spec(*none, "kv_heads", None)
    by_head = [x.reshape(*rows, kv, x.shape[-1] // kv, out_sharding=apart) for x in parts]
    y = jnp.concatenate(by_head, axis=-1)
    return y.reshape(*rows, qkv_width(config), out_sharding=sharding.spec(*none, "kv_heads"))


def _gate_up(layer: Params, name: str) -> Float[Array, "*D 2 F"]:
    """Returns the joined kernels or biases."""
    return jnp.stack([layer[part][name] for part in _GATE_UP], axis=-2)

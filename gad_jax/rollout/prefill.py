"""What a rollout computes before it decodes: the decode copy of the weights, the prompt KV cache.

Both are made once per rollout and only read by the decode loop (`engine.py`, `live.py`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gad_jax.distributed import parallel, sharding
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import adapters, decoder, quantised
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.ring import DecodeCopy, PromptCache
from gad_jax.types import Params, Segments


@jax.jit(static_argnames="config")
def decode_copy(config: DecoderConfig, params: Params) -> DecodeCopy:
    """Returns the decode copy of the weights: in the compute dtype, gathered, split by layer.

    Decoding reads all weights once per token, so their FSDP shards are gathered once per rollout
    and not once per token. Separate layers let the decode loop update its KV cache in place.
    Adapters are merged: the loop then reads one weight per token, where unmerged ones would add two
    small matmuls to each projection. A quantised base stays as it is, its adapters apart: merged
    weights would take two to four times its memory. With `config.decode_weights` of int8, kernels
    are rounded after that. Decode with `config.decoding`.
    """
    if config.quantisation == "none" and (config.lora or config.decode_weights == "int8"):
        return _copy_by_layer(config, params)
    whole = jax.tree_util.tree_map_with_path(partial(_copied, config, ()), params)
    layers = whole.pop("layers")
    split = tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(config.layers))
    return DecodeCopy(split, whole, _head(config, whole))


def _copy_by_layer(config: DecoderConfig, params: Params) -> DecodeCopy:
    """Returns `decode_copy` with adapters merged and kernels rounded, layer by layer: the floats of
    all layers at once would be larger than the copy itself."""

    def layer(number: int) -> Params:
        own = jax.tree.map(lambda x: x[number], params["layers"])
        if config.lora:
            own = adapters.merge_layer(config.lora, own)
        own = jax.tree_util.tree_map_with_path(partial(_copied, config, ("layers",)), own)
        return own if config.decode_weights == "auto" else quantised.rounded_layer(own)

    rest = {name: part for name, part in params.items() if name not in ("layers", "score")}
    rest = jax.tree_util.tree_map_with_path(partial(_copied, config, ()), rest)
    return DecodeCopy(tuple(map(layer, range(config.layers))), rest, _head(config, rest))


def _copied(config: DecoderConfig, above: tuple[str, ...], path: Any, leaf: Array) -> Array:
    """Returns a parameter as decoding reads it; one of a layer alone has `above` = ("layers",)."""
    axes = sharding.parameter_axes("/".join((*above, sharding.path_name(path))))[len(above) :]
    # norms are computed in float32, so their scales stay float32
    stays = axes[-1] == "scale" or quantised.is_part(sharding.path_name(path))
    return sharding.gather(leaf if stays else leaf.astype(config.compute_dtype), *axes)


def _head(config: DecoderConfig, rest: Params) -> Array:
    return rest["embedding"] if config.tied else rest.pop("head")["kernel"].T


def only_copy(config: DecoderConfig, params: Params) -> DecodeCopy:
    """Returns what `decode_copy` does, and frees the parameters."""
    return decode_copy(config, _in_compute_dtype(config, params))


@jax.jit(static_argnames="config", donate_argnames="params")
def _in_compute_dtype(config: DecoderConfig, params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(config.compute_dtype)), params)


@jax.jit(static_argnames=("config", "size"))
def prefill(
    config: DecoderConfig,
    params: Params,
    size: int,
    tokens: Int[Array, "M W"],
    positions: Int[Array, "M W"],
    own: Int[Array, "M W"],
) -> PromptCache:
    """Runs prompts packed into rows and returns their KV cache.

    `own` numbers the prompts of a row from 1 (0: padding). `size` is the tokens that the cache
    holds per data shard: at least those of its rows. A power of two bounds what is compiled.
    """
    rows, width = tokens.shape
    _, cache = decoder.hidden(
        config, params, tokens, positions, Segments(own, own), collect_cache=True
    )
    shards = data_shards(jax.sharding.get_abstract_mesh())

    def end_to_end(z: Float[Array, "M K W C"], order: tuple[int, ...]) -> Array:
        """Returns the rows of each data shard end to end, padded to `size` tokens."""
        z = z.transpose(order)
        at = order.index(0)  # where the rows are, and right behind them the tokens of a row
        shape = [*z.shape[:at], rows * width, *z.shape[at + 2 :]]
        axes: list[str | None] = [None] * len(shape)
        axes[0], axes[at] = "kv_heads", "batch"
        z = z.reshape(shape, out_sharding=sharding.spec(*axes))
        padding = [(0, 0)] * len(shape)
        padding[at] = (0, size - rows * width // shards)
        return parallel.shard_map(
            lambda x: jnp.pad(x, padding), (parallel.batch_spec(at),), parallel.batch_spec(at)
        )(z)

    # the orders of ring.PROMPT_LAYOUT
    keys = tuple(end_to_end(cache[0][i], (1, 3, 0, 2)) for i in range(config.layers))
    values = tuple(end_to_end(cache[1][i], (1, 0, 2, 3)) for i in range(config.layers))
    return PromptCache(keys, values)

"""Before decoding: the decode copy of the weights, and the KV caches of the prompts."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gad_jax.distributed import parallel, sharding
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.ring import PromptCache, Weights
from gad_jax.types import Params, Segments


@jax.jit(static_argnames="config")
def prepare(config: DecoderConfig, params: Params) -> Weights:
    """Returns the decode copy of the weights: in the compute dtype, gathered, split by layer."""

    def copy(path: Any, leaf: Array) -> Array:
        axes = sharding.parameter_axes(sharding.path_name(path))
        # norms stay float32, as they are computed
        dtype = leaf.dtype if axes[-1] == "scale" else jnp.dtype(config.compute_dtype)
        return sharding.gather(leaf.astype(dtype), *axes)

    whole = jax.tree_util.tree_map_with_path(copy, params)
    layers = whole.pop("layers")
    split = tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(config.layers))
    head = whole["embedding"] if config.tied else whole.pop("head")["kernel"].T
    return Weights(split, whole, head)


@jax.jit(static_argnames=("config", "size"))
def prefill(
    config: DecoderConfig,
    params: Params,
    size: int,
    tokens: Int[Array, "M W"],
    positions: Int[Array, "M W"],
    own: Int[Array, "M W"],
) -> PromptCache:
    """Runs prompts packed into rows, `own` numbering them within their row, and keeps their cache:
    `size` tokens per data shard, at least those of its rows."""
    rows, width = tokens.shape
    _, cache = decoder.hidden(
        config, params, tokens, positions, Segments(own, own), collect_cache=True
    )
    shards = data_shards(jax.sharding.get_abstract_mesh())

    def line(z: Float[Array, "M K W C"], order: tuple[int, ...]) -> Array:
        """Lays the rows of each shard side by side, and fills up."""
        z = z.transpose(order)
        at = order.index(0)
        shape = [*z.shape[:at], rows * width, *z.shape[at + 2 :]]
        axes: list[str | None] = [None] * len(shape)
        axes[0], axes[at] = "kv_heads", "batch"
        z = z.reshape(shape, out_sharding=sharding.spec(*axes))
        padding = [(0, 0)] * len(shape)
        padding[at] = (0, size - rows * width // shards)
        return parallel.shard_map(
            lambda x: jnp.pad(x, padding), (parallel.batch_spec(at),), parallel.batch_spec(at)
        )(z)

    keys = tuple(line(cache[0][i], (1, 3, 0, 2)) for i in range(config.layers))
    values = tuple(line(cache[1][i], (1, 0, 2, 3)) for i in range(config.layers))
    return PromptCache(keys, values)

"""What a rollout computes before it decodes: the decode copy of the weights, the prompt KV cache.

Both are made once per rollout and only read by the decode loop (`engine.py`, `live.py`).
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gad_jax.distributed import devices, parallel, sharding
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import adapters, decoder, joined, quantised
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.ring import DecodeCopy, PromptCache
from gad_jax.types import Params, Segments


def decode_copy(config: DecoderConfig, params: Params) -> DecodeCopy:
    """Returns the decode copy of the weights: in the compute dtype, gathered, split by layer.

    Decoding reads all weights once per token, so their FSDP shards are gathered once per rollout
    and not once per token. Separate layers let the decode loop update its KV cache in place.
    Adapters are merged: the loop then reads one weight per token, where unmerged ones would add two
    small matmuls to each projection. A quantised base stays as it is, its adapters apart: merged
    weights would take two to four times its memory. `config.decode_weights` of int8 or bfloat16
    rounds kernels after that. Decode with `config.decoding`.

    What a frozen base has as decoding reads it (`is_shared`) is the base's own array, not a copy.
    """
    if config.lora is None:
        return whole_copy(config, params)
    rest = {name: part for name, part in params.items() if name not in ("layers", "score")}
    head = None
    if not config.tied and devices.platform() == "cpu":
        head = _turned_head(config, rest.pop("head")["kernel"])
    elif config.tied and _in_half(config):
        head = _head_of(config, rest["embedding"])
    rest = jax.tree_util.tree_map_with_path(partial(_shared_or_copied, config, ""), rest)
    if config.quantisation == "none":
        layers = (merged_layer(config, params["layers"], n) for n in _numbers(config))
        return DecodeCopy(tuple(layers), rest, head, {})
    kernels, others = kernels_apart(params["layers"])
    one = partial(_shared_or_copied, config, "layers/")
    stacked = jax.tree_util.tree_map_with_path(one, kernels)
    return DecodeCopy(by_layer(config, others), rest, head, stacked)


@jax.jit(static_argnames="config")
def whole_copy(config: DecoderConfig, params: Params) -> DecodeCopy:
    """Returns `decode_copy` of a network without adapters, in one program."""
    rest = {name: part for name, part in params.items() if name != "layers"}
    rest = jax.tree_util.tree_map_with_path(partial(_copied, config, ""), rest)
    if config.decode_weights == "int8":
        layers = tuple(_rounded(config, params["layers"], n) for n in range(config.layers))
    else:
        layers = tuple(joined.join(config, each) for each in by_layer(config, params["layers"]))
    if config.tied:
        head = _head_of(config, params["embedding"]) if _in_half(config) else rest["embedding"]
    else:
        head = rest.pop("head")["kernel"].T
    return DecodeCopy(layers, rest, head, {})


def _rounded(config: DecoderConfig, layers: Params, number: int) -> Params:
    """Returns one layer with its kernels in int8: the floats of all layers at once would be larger
    than the copy itself."""
    own = jax.tree.map(lambda x: x[number], layers)
    own = jax.tree_util.tree_map_with_path(partial(_copied, config, "layers/"), own)
    return quantised.rounded_layer(own)


@jax.jit(static_argnames="config")
def merged_layer(config: DecoderConfig, layers: Params, number: Int[Array, ""]) -> Params:
    """Returns one layer as decoding reads it, its adapters merged.

    A program of all layers would hold the float32 sums of several at once.
    """
    assert config.lora is not None
    own = jax.tree.map(lambda x: x[number], layers)
    merged = adapters.merge_layer(config.lora, own)
    merged = jax.tree_util.tree_map_with_path(partial(_copied, config, "layers/"), merged)
    if config.decode_weights == "int8":
        return quantised.rounded_layer(merged)
    return joined.join(config, merged)


@jax.jit(static_argnames="config")
def _numbers(config: DecoderConfig) -> tuple[Int[Array, ""], ...]:
    return tuple(jnp.int32(number) for number in range(config.layers))


@jax.jit(static_argnames="config")
def by_layer(config: DecoderConfig, layers: Params) -> tuple[Params, ...]:
    """Returns the parameters of each layer as decoding reads them, without its kernels."""
    copied = jax.tree_util.tree_map_with_path(partial(_copied, config, "layers/"), layers)
    return _split(config, copied)


def _split(config: DecoderConfig, layers: Params) -> tuple[Params, ...]:
    return tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(config.layers))


def kernels_apart(layers: Params) -> tuple[Params, Params]:
    """Returns the quantised kernels of all layers, and what else is in them."""
    kernels = {
        name: {"kernel": part["kernel"]}
        for name, part in layers.items()
        if isinstance(part.get("kernel"), dict)
    }
    others = {
        name: {key: leaf for key, leaf in part.items() if key not in kernels.get(name, {})}
        for name, part in layers.items()
    }
    return kernels, others


def is_shared(config: DecoderConfig, path: str, leaf: Any) -> bool:
    """Returns whether decoding reads this parameter of a frozen base where the base has it.

    It must be whole on the mesh that is set and have its dtype for decoding. A layer's floats are
    not shared: the loop would slice them out of the stack for each token. Nor is a CPU's head
    (`ring.forward` says why).
    """
    sliced = path.startswith("layers/") and not quantised.is_part(path)
    turned = path == "head/kernel" and devices.platform() == "cpu"
    if config.lora is None or sliced or turned or path.startswith("score/"):
        return False
    mesh = jax.sharding.get_abstract_mesh()
    axes = sharding.parameter_axes(path)
    whole = mesh.empty or mesh.shape["fsdp"] == 1 or sharding.gathered_axes(*axes) == axes
    return whole and leaf.dtype == decode_dtype(config, path, leaf)


def shared(config: DecoderConfig, params: Params) -> list[Any]:
    """Returns the arrays of a network with adapters that its decode copy shares."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [x for path, x in leaves if is_shared(config, sharding.path_name(path), x)]


def _shared_or_copied(config: DecoderConfig, above: str, path: Any, leaf: Any) -> Any:
    name = above + sharding.path_name(path)
    return leaf if is_shared(config, name, leaf) else _copy(config, name, leaf)


@jax.jit(static_argnames=("config", "name"))
def _copy(config: DecoderConfig, name: str, leaf: Array) -> Array:
    return _copied(config, name, (), leaf)


@jax.jit(static_argnames="config")
def _turned_head(config: DecoderConfig, kernel: Float[Array, "D V"]) -> Float[Array, "V D"]:
    return _copied(config, "head/kernel", (), kernel).T


@jax.jit(static_argnames="config")
def _head_of(config: DecoderConfig, embedding: Float[Array, "V D"]) -> Float[Array, "V D"]:
    """Returns a tied embedding as the head that decoding reads. The embedding itself stays apart,
    in the compute dtype: XLA for CPUs would widen all of it to look up a few rows."""
    return _copied(config, "head/kernel", (), embedding.T).T


def _in_half(config: DecoderConfig) -> bool:
    return config.decode_weights == "bfloat16"


def _copied(config: DecoderConfig, above: str, path: Any, leaf: Array) -> Array:
    """Returns a parameter of all layers, of one or of none as decoding reads it."""
    name = above + sharding.path_name(path)
    axes = sharding.parameter_axes(name)[-leaf.ndim :]
    return sharding.gather(leaf.astype(decode_dtype(config, name, leaf)), *axes)


def decode_dtype(config: DecoderConfig, name: str, leaf: Any) -> jnp.dtype:
    """Returns the dtype in which decoding reads the parameter of this path."""
    # norms are computed in float32, so their scales stay float32
    stays = sharding.parameter_axes(name)[-1] == "scale" or quantised.is_part(name)
    if stays:
        return jnp.dtype(leaf.dtype)
    halved = _in_half(config) and name.endswith(("/kernel", "/turned"))
    return jnp.dtype("bfloat16" if halved else config.compute_dtype)


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
    Matmuls are in the compute dtype, as those of decoding.
    """
    config = dataclasses.replace(config, matmul="auto")
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

    # the orders of attention.PROMPT_LAYOUT
    keys = tuple(end_to_end(cache[0][i], (1, 3, 0, 2)) for i in range(config.layers))
    values = tuple(end_to_end(cache[1][i], (1, 0, 2, 3)) for i in range(config.layers))
    return PromptCache(keys, values)

"""The KV cache of the slots (a ring buffer), and the network that decodes one token per slot.

All slots write their newest key and value at the same position of the ring, so a write is one slice
and not a scatter. Where a token stands therefore says when it was written, not which token it is:
a slot's sequence is always its `context` newest positions, whatever older sequences left behind. A
prompt is copied to the positions just before the next one. A layer with a sliding window has a ring
of at most that many positions, so what leaves the window is what is written over.

Functions that take a `RingCache` work on one data shard (inside `jax.shard_map`); `make` and
`zeros` return arrays of all data shards. When to insert, resize or stop is decided by `engine.py`
and `live.py`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from gad_jax.distributed import devices, parallel, sharding
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import decoder, turned
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import attention
from gad_jax.rollout.attention import PROMPT_LAYOUT, Axis
from gad_jax.types import Params


class DecodeCopy(NamedTuple):
    """The decode copy of the weights: one tree per layer, the rest, and the head as [V, D].

    `stacked` are parts of all layers that are read where the run keeps them, and in no layer's
    tree. Without a `head`, that is the embedding or the kernel [D, V] in `rest`.
    """

    layers: tuple[Params, ...]
    rest: Params
    head: Float[Array, "V D"] | None
    stacked: Params


class PromptCache(NamedTuple):
    """The KV cache of prompts, by layer: the P tokens of a data shard's prompts end to end.

    `prefill.prefill` makes it; `insert` copies a prompt from it into a slot.
    """

    keys: tuple[Float[Array, "K C P"], ...]
    values: tuple[Float[Array, "K P C"], ...]


class RingCache(NamedTuple):
    """The KV cache of a data shard's S slots, by layer; axes in the order of `ring_layout`.

    `written` counts the positions written since the cache was made; the next token goes to
    `written % positions` of each layer. `context` counts the tokens of a slot's sequence. `token`
    is a slot's newest token, whose key and value are not in the cache yet.
    """

    written: Int[Array, ""]
    keys: tuple[Float[Array, "S _ _ _"], ...]
    values: tuple[Float[Array, "S _ _ _"], ...]
    context: Int[Array, " S"]
    token: Int[Array, " S"]


def zeros(
    count: int, *shape: int, dtype: Any = jnp.int32, axes: Sequence[str | None] = ()
) -> Array:
    """Returns zeros [count, *shape] for each data shard; `axes` are the logical ones of `shape`."""
    shards = data_shards(jax.sharding.get_abstract_mesh())
    where = sharding.spec("batch", *(axes or (None,) * len(shape)))
    return jnp.zeros((shards * count, *shape), dtype, out_sharding=where)


def layer_positions(config: DecoderConfig, capacity: int) -> list[int]:
    """Returns the positions per slot of each layer, in a cache for contexts of this capacity."""
    windows = [config.kind(layer).window for layer in range(config.layers)]
    return [min(capacity, window or capacity) for window in windows]


def make(config: DecoderConfig, slots: int, capacity: int) -> RingCache:
    """Returns an empty cache for contexts of `capacity` tokens on all data shards.

    `slots` are those of one shard.
    """
    sizes: dict[Axis, int] = {
        "slot": slots,
        "kv_head": config.kv_heads,
        "width": config.head_width,
    }

    def layers(order: tuple[Axis, ...]) -> tuple[Array, ...]:
        dtype = jnp.dtype(config.compute_dtype)
        axes = ["kv_heads" if axis == "kv_head" else None for axis in order[1:]]

        def layer(positions: int) -> Array:
            shape = [positions if axis == "position" else sizes[axis] for axis in order]
            return zeros(*shape, dtype=dtype, axes=axes)

        return tuple(map(layer, layer_positions(config, capacity)))

    layout = attention.ring_layout()
    return RingCache(
        written=jnp.zeros((), jnp.int32),
        keys=layers(layout.keys),
        values=layers(layout.values),
        context=zeros(slots),
        token=zeros(slots),
    )


def specs(ring: RingCache) -> RingCache:
    """Returns how its arrays are split over the data shards."""
    return jax.tree.map(lambda _: parallel.batch_spec(0), ring)._replace(written=P())


def insert(
    ring: RingCache,
    prompt_cache: PromptCache,
    slot: Int[Array, ""],
    start: Int[Array, ""],
    cached: Int[Array, ""],
    token: Int[Array, ""],
) -> RingCache:
    """Returns the ring with a prompt in a slot: `cached` tokens of the prompt cache from `start`.

    The prompt's last token is not among them. It becomes the slot's newest `token`, so the next
    step runs it and draws the response's first token like any other.
    """

    def write(
        target: Array, tokens: Array, held: tuple[Axis, ...], order: tuple[Axis, ...]
    ) -> Array:
        positions, along = target.shape[order.index("position")], held.index("position")
        age = (ring.written - 1 - jnp.arange(positions)) % positions
        source = jnp.clip(start + cached - 1 - age, 0, tokens.shape[along] - 1)
        new = jnp.take(tokens, source, axis=along)
        new = jnp.einsum(new, held, order[1:])
        return jax.lax.dynamic_update_slice_in_dim(target, new[None], slot, axis=0)

    layout = attention.ring_layout()
    keys = zip(ring.keys, prompt_cache.keys, strict=True)
    values = zip(ring.values, prompt_cache.values, strict=True)
    return ring._replace(
        keys=tuple(write(x, new, PROMPT_LAYOUT.keys, layout.keys) for x, new in keys),
        values=tuple(write(x, new, PROMPT_LAYOUT.values, layout.values) for x, new in values),
        context=ring.context.at[slot].set(cached),
        token=ring.token.at[slot].set(token),
    )


def resized(
    config: DecoderConfig, ring: RingCache, kept: Int[Array, " n"], capacity: int
) -> RingCache:
    """Returns the slots `kept` in a cache of another capacity, which must hold their contexts.

    The arrays are of all data shards, the numbers in `kept` those of a shard's slots. The old cache
    is freed layer by layer, so only one layer of it is there next to the new one.
    """

    def layers(caches: tuple[Array, ...], order: tuple[Axis, ...]) -> tuple[Array, ...]:
        new = []
        for old, positions in zip(caches, layer_positions(config, capacity), strict=True):
            axis = order.index("position")
            new.append(_moved(old, ring.written, kept, positions, axis))
            old.delete()
        return tuple(new)

    layout = attention.ring_layout()
    return ring._replace(
        keys=layers(ring.keys, layout.keys),
        values=layers(ring.values, layout.values),
        context=of_slots(ring.context, kept),
        token=of_slots(ring.token, kept),
    )


@jax.jit
def of_slots(x: Int[Array, " S"], kept: Int[Array, " n"]) -> Int[Array, " n"]:
    """Returns the numbers of the slots `kept` of each data shard."""
    along = parallel.batch_spec(0)
    return parallel.shard_map(lambda x, kept: x[kept], (along, along), along)(x, kept)


@jax.jit(static_argnames=("positions", "axis"))
def _moved(
    x: Float[Array, "S _ _ _"],
    written: Int[Array, ""],
    kept: Int[Array, " n"],
    positions: int,
    axis: int,
) -> Float[Array, "n _ _ _"]:
    """Returns one array of the cache with another number of positions on its `axis`."""

    def local(x: Array, written: Array, kept: Array) -> Array:
        # Positions older than the old ring was long hold garbage, which no context reaches.
        age = (written - 1 - jnp.arange(positions)) % positions
        return jnp.take(x[kept], (written - 1 - age) % x.shape[axis], axis=axis)

    along = parallel.batch_spec(0)
    return parallel.shard_map(local, (along, P(), along), along)(x, written, kept)


def forward(
    config: DecoderConfig, weights: DecodeCopy, ring: RingCache
) -> tuple[RingCache, Float[Array, "S V"]]:
    """Runs the newest token of every slot; returns the cache with it and the logits as float32.

    The caller draws the next tokens and puts them in the place of `token`.
    """
    context = ring.context + 1
    angles = {kind: decoder.angles(config, kind, ring.context) for kind in config.kinds}
    positions = [each.shape[attention.ring_layout().keys.index("position")] for each in ring.keys]
    masks = {n: attention.visible(ring.written, context, n) for n in {*positions}}
    x = decoder.embed(config, weights.rest, ring.token)
    keys, values = [], []
    # Unrolled, so that every layer updates its cache in place; a scan would copy all caches.
    for layer, layer_params in enumerate(weights.layers):
        if config.decoding.quantisation != "none":
            # A kernel is sliced and dequantised where it is used: without the barrier XLA may move
            # that out of the loop over tokens, and hold all kernels as floats.
            parts = (layer_params, weights.stacked, x)
            layer_params, stacked, x = jax.lax.optimization_barrier(parts)
            layer_params = _with_part(layer_params, stacked, _number(layer, x))
        block = nnx.merge(decoder.block_graph(config.decoding), layer_params)
        seen = masks[positions[layer]]
        attend = partial(_attend, ring.keys[layer], ring.values[layer], ring.written, seen)
        x, (new_keys, new_values) = block(x, angles[config.kind(layer)], attend)
        keys.append(new_keys)
        values.append(new_values)
    x = decoder.final_norm(config, weights.rest, x)
    logits = sharding.reshard(_logits(weights, x), None, None)
    ring = ring._replace(
        written=ring.written + 1, keys=tuple(keys), values=tuple(values), context=context
    )
    return ring, decoder.scaled(config, logits.astype(jnp.float32))


def _number(layer: int, x: Float[Array, "S D"]) -> int | Int[Array, ""]:
    """Returns the layer's number, on a CPU as one that depends on the layer before.

    XLA for CPUs drops barriers before it schedules, and would dequantise all layers first. No
    activation is larger than infinity.
    """
    return layer if devices.platform() != "cpu" else layer + (x[0, 0] > jnp.inf).astype(jnp.int32)


def _with_part(layer_params: Params, stacked: Params, layer: int | Int[Array, ""]) -> Params:
    """Returns a layer's parameters with its part of those that are stacked."""
    index: Any = jax.lax.index_in_dim if isinstance(layer, int) else jax.lax.dynamic_index_in_dim
    own = jax.tree.map(lambda x: index(x, layer, keepdims=False), stacked)
    return {name: {**part, **own.get(name, {})} for name, part in layer_params.items()}


def head(weights: DecodeCopy) -> Any:
    """Returns the array that makes the logits, or its shape: the kernel in `rest`, [D, V], or
    [V, D]."""
    if weights.head is not None:
        return weights.head
    rest = weights.rest
    return rest["head"]["kernel"] if "head" in rest else rest["embedding"]


def read_by_step(weights: DecodeCopy) -> tuple[Any, ...]:
    """Returns the weights that every step of the decode loop reads whole."""
    return weights.layers, weights.stacked, head(weights)


def _logits(weights: DecodeCopy, x: Float[Array, "S D"]) -> Float[Array, "S V"]:
    kernel = head(weights)
    if "head" in weights.rest:
        return jnp.einsum("sd,dv->sv", x, kernel, out_sharding=sharding.spec(None, "vocabulary"))
    return turned.product(x, kernel, "vocabulary")


def _attend(
    keys: Float[Array, "S _ _ _"],
    values: Float[Array, "S _ _ _"],
    written: Int[Array, ""],
    seen: Bool[Array, "S positions"],
    query: Float[Array, "S H C"],
    key: Float[Array, "S K C"],
    value: Float[Array, "S K C"],
) -> tuple[Float[Array, "S H C"], tuple[Array, Array]]:
    """Writes the newest key and value, and attends to the positions that are seen."""
    layout = attention.ring_layout()

    def write(cache: Array, new: Array, order: tuple[Axis, ...]) -> Array:
        axis = order.index("position")
        new = jnp.expand_dims(new, axis)
        return jax.lax.dynamic_update_slice_in_dim(cache, new, written % seen.shape[1], axis)

    keys, values = write(keys, key, layout.keys), write(values, value, layout.values)
    return attention.attend(query, keys, values, seen), (keys, values)

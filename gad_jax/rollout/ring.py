"""The caches of the slots, which grow by one column a step, and the network that fills them.

All slots write their newest key and value into the same column of their caches, which are rings:
the column of a token says when it was written. A prompt is inserted into the columns before the
present one. So a write is one slice and not a scatter, and a slot's tokens are always the `context`
newest columns, whatever was in the ring before.

What runs here is of one data shard (`sharding.locally`).
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
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.models.layers import rotation
from gad_jax.types import Params


class Weights(NamedTuple):
    """The decode copy of a network: one tree per layer, the rest, and the head as [V, D]."""

    layers: tuple[Params, ...]
    rest: Params
    head: Float[Array, "V D"]


class PromptCache(NamedTuple):
    """What `prefill.prefill` leaves of the prompts: by layer, the caches of all their tokens in a
    line."""

    keys: tuple[Float[Array, "K C F"], ...]
    values: tuple[Float[Array, "K F C"], ...]


def order() -> tuple[str, str]:
    """Returns the order of the axes of a layer's keys and values: slot, kv head, width, t = column.

    A TPU's compiler wants a column's numbers side by side, and would keep a second copy of caches
    that come otherwise; elsewhere products with these orders read the caches as they lie.
    """
    return ("stkc", "stkc") if devices.platform() == "tpu" else ("skct", "sktc")


class RingCache(NamedTuple):
    """The caches of S slots of a data shard, their axes in the `order` of the platform.

    `column` is the next one to be written. `context` counts the columns that belong to a slot's
    sequence, and `token` is its newest token, not yet in the cache.
    """

    column: Int[Array, ""]
    keys: tuple[Float[Array, "S _ _ _"], ...]
    values: tuple[Float[Array, "S _ _ _"], ...]
    context: Int[Array, " S"]
    token: Int[Array, " S"]

    @property
    def columns(self) -> int:
        """Of each slot."""
        return self.keys[0].shape[order()[0].index("t")]


def zeros(
    count: int, *shape: int, dtype: Any = jnp.int32, axes: Sequence[str | None] = ()
) -> Array:
    """Returns zeros [count, *shape] for each data shard; `axes` are the logical ones of `shape`."""
    shards = data_shards(jax.sharding.get_abstract_mesh())
    where = sharding.spec("batch", *(axes or (None,) * len(shape)))
    return jnp.zeros((shards * count, *shape), dtype, out_sharding=where)


def make(config: DecoderConfig, slots: int, columns: int) -> RingCache:
    """Returns empty caches, on all data shards."""

    sizes = {"s": slots, "k": config.kv_heads, "c": config.head_width, "t": columns}

    def cache(letters: str) -> tuple[Array, ...]:
        kind = jnp.dtype(config.compute_dtype)
        shape = [sizes[letter] for letter in letters]
        axes = ["kv_heads" if letter == "k" else None for letter in letters[1:]]
        return tuple(zeros(*shape, dtype=kind, axes=axes) for _ in range(config.layers))

    keys, values = map(cache, order())
    return RingCache(
        column=jnp.zeros((), jnp.int32),
        keys=keys,
        values=values,
        context=zeros(slots),
        token=zeros(slots),
    )


def specs(ring: RingCache) -> RingCache:
    """Returns how its arrays are split over the data shards."""
    return jax.tree.map(lambda _: parallel.batch_spec(0), ring)._replace(column=P())


def insert(
    ring: RingCache,
    prefix: PromptCache,
    slot: Int[Array, ""],
    start: Int[Array, ""],
    cached: Int[Array, ""],
    token: Int[Array, ""],
) -> RingCache:
    """Returns the ring with a prompt in a slot: `cached` tokens of the prefix, from `start` on.

    The prompt's last token is not among them but is the slot's newest `token`: the step that runs
    it draws the response's first token like any other.
    """
    age = (ring.column - 1 - jnp.arange(ring.columns)) % ring.columns
    source = jnp.clip(start + cached - 1 - age, 0, prefix.keys[0].shape[-1] - 1)

    def write(target: Array, line: Array, lies: str, letters: str) -> Array:
        new = jnp.take(line, source, axis=lies.index("t"))
        new = jnp.einsum(f"{lies}->{letters[1:]}", new)
        return jax.lax.dynamic_update_slice_in_dim(target, new[None], slot, axis=0)

    of_keys, of_values = order()
    keys = zip(ring.keys, prefix.keys, strict=True)
    values = zip(ring.values, prefix.values, strict=True)
    return ring._replace(
        keys=tuple(write(x, line, "kct", of_keys) for x, line in keys),
        values=tuple(write(x, line, "ktc", of_values) for x, line in values),
        context=ring.context.at[slot].set(cached),
        token=ring.token.at[slot].set(token),
    )


def resized(ring: RingCache, kept: Int[Array, " n"], columns: int) -> RingCache:
    """Returns the slots that are kept, with so many columns, which must hold what is in them."""
    age = (ring.column - 1 - jnp.arange(columns)) % columns
    source = (ring.column - 1 - age) % ring.columns

    def move(x: Array, letters: str) -> Array:
        # a column older than the ring was is garbage, which no context reaches
        return jnp.take(x[kept], source, axis=letters.index("t"))

    of_keys, of_values = order()
    return ring._replace(
        keys=tuple(move(x, of_keys) for x in ring.keys),
        values=tuple(move(x, of_values) for x in ring.values),
        context=ring.context[kept],
        token=ring.token[kept],
    )


def forward(
    config: DecoderConfig, weights: Weights, ring: RingCache
) -> tuple[RingCache, Float[Array, "S V"]]:
    """Runs the newest token of every slot; returns the grown caches and the next logits. `token`
    is then for the caller to replace."""
    context = ring.context + 1
    columns = ring.columns
    column = ring.column % columns
    seen = (ring.column - jnp.arange(columns)) % columns < context[:, None]
    angles = rotation(config, ring.context)
    x = decoder.embed(config, weights.rest, ring.token)
    keys, values = [], []
    for layer, layer_params in enumerate(weights.layers):
        block = nnx.merge(decoder.block_graph(config), layer_params)
        attend = partial(_attend, ring.keys[layer], ring.values[layer], column, seen)
        x, (new_keys, new_values) = block(x, angles, attend)
        keys.append(new_keys)
        values.append(new_values)
    x = decoder.final_norm(config, weights.rest, x)
    # Many rows by few columns: in this order the product is 2 to 3 times as fast on a CPU.
    logits = jnp.einsum(
        "vd,sd->vs", weights.head, x, out_sharding=sharding.spec("vocabulary", None)
    )
    logits = sharding.reshard(jax.lax.optimization_barrier(logits).T, None, None)
    ring = ring._replace(
        column=ring.column + 1, keys=tuple(keys), values=tuple(values), context=context
    )
    return ring, logits.astype(jnp.float32)


def _attend(
    keys: Float[Array, "S _ _ _"],
    values: Float[Array, "S _ _ _"],
    column: Int[Array, ""],
    seen: Bool[Array, "S T"],
    query: Float[Array, "S H C"],
    key: Float[Array, "S K C"],
    value: Float[Array, "S K C"],
) -> tuple[Float[Array, "S H C"], tuple[Array, Array]]:
    """Writes the newest key and value into the column, and attends to what each slot has seen."""
    slots, kv_heads, width = key.shape
    of_keys, of_values = order()
    shared = query.shape[1] // kv_heads
    split = sharding.spec(None, "kv_heads", None, None)
    q = query.reshape(slots, kv_heads, shared, width, out_sharding=split)
    q = q * jnp.asarray(width**-0.5, q.dtype)

    def write(caches: Array, new: Array, letters: str) -> Array:
        axis = letters.index("t")
        new = jnp.expand_dims(new, axis)
        return jax.lax.dynamic_update_slice_in_dim(caches, new, column, axis)

    keys, values = write(keys, key, of_keys), write(values, value, of_values)
    kind = jnp.float32
    scores = jnp.einsum(f"skgc,{of_keys}->skgt", q, keys, preferred_element_type=kind)
    scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    scores = jnp.exp(scores - scores.max(-1, keepdims=True))
    mixed = jnp.einsum(
        f"skgt,{of_values}->skgc", scores.astype(q.dtype), values, preferred_element_type=kind
    )
    out = (mixed / scores.sum(-1, keepdims=True)).astype(q.dtype)
    return out.reshape(query.shape, out_sharding=sharding.spec(None, "heads", None)), (keys, values)

"""The decode loop, compiled: every slot holds a response, and takes the next sample when it ends.

The refill is inside the loop, so the host waits for nothing. `decode` returns only when all is done
or when another size suits what is left: a larger or smaller cache, or fewer slots. `resize` moves
the slots that go on into arrays of that size, so cost follows the tokens that are present.

All slots write their newest key and value into the same column of their caches, which are rings:
the column of a token says when it was written. A prompt is inserted into the columns before the
present one. So a write is one slice and not a scatter, and a slot's tokens are always the `context`
newest columns, whatever was in the ring before.

Randomness is folded from (key, prompt index, sample index, position), so a sample does not depend
on its slot, on which others are drawn beside it, nor on the devices.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key

from gad_jax import sharding
from gad_jax.models import decoder
from gad_jax.models.decoder import DecoderConfig
from gad_jax.rollout.queue import Queue, capacity
from gad_jax.rollout.sampling import GREEDY, Sampler, sample
from gad_jax.types import Params

SPARE = 3
"""A cache with so many times the columns that are needed is replaced by a smaller one."""

PER_SLOT = ("sample", "context", "generated", "token")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a compiled rollout is specialised for; `slots` are those of one data shard, and 0 takes
    `engine.default_slots`."""

    samples: int
    max_new_tokens: int
    end_tokens: tuple[int, ...]
    pad_token: int
    sampler: Sampler = GREEDY
    slots: int = 0
    move_to_fewer: bool = True
    """Whether the last samples move to fewer slots, each number of which is another program."""


class Weights(NamedTuple):
    """The decode copy of a network: one tree per layer, the rest, and the head as [V, D]."""

    layers: tuple[Params, ...]
    rest: Params
    head: Float[Array, "V D"]


class Prefix(NamedTuple):
    """What `prefill` leaves of the prompts: by layer, the caches of all their tokens in a line."""

    keys: tuple[Float[Array, "K C F"], ...]
    values: tuple[Float[Array, "K F C"], ...]


class Slots(NamedTuple):
    """The state of the decode loop on one data shard; S slots, Q samples of the shard's queue.

    `column` is the ring's next one. A slot's `sample` is Q when it is idle. `context` counts the
    columns that belong to its sample, `generated` those of the response, and `token` is the newest
    token, not yet in the cache. The last four are the results, in the order of the queue.
    """

    column: Int[Array, ""]
    next: Int[Array, " 1"]
    keys: tuple[Float[Array, "S K C T"], ...]
    values: tuple[Float[Array, "S K T C"], ...]
    sample: Int[Array, " S"]
    context: Int[Array, " S"]
    generated: Int[Array, " S"]
    token: Int[Array, " S"]
    tokens: Int[Array, "Q R"]
    logprobs: Float[Array, "Q R"]
    lengths: Int[Array, " Q"]
    finished: Bool[Array, " Q"]


class Status(NamedTuple):
    """What decides the next size, the most of any shard: busy slots, columns needed, samples that
    wait."""

    busy: Int[Array, ""]
    needed: Int[Array, ""]
    waiting: Int[Array, ""]


@sharding.jit(static=("config", "settings", "slots", "columns", "samples"))
def start(
    config: DecoderConfig, settings: Settings, slots: int, columns: int, samples: int
) -> Slots:
    """Returns idle slots with caches of so many columns, and empty results; counts per shard."""
    shards = sharding.data_shards(jax.sharding.get_abstract_mesh())
    kind = jnp.dtype(config.compute_dtype)

    def zeros(count: int, *shape: int, dtype: Any = jnp.int32, axis: str | None = None) -> Array:
        where = sharding.spec("batch", *(axis if i == 0 else None for i in range(len(shape))))
        return jnp.zeros((shards * count, *shape), dtype, out_sharding=where)

    def cache(*shape: int) -> tuple[Array, ...]:
        size = (slots, config.kv_heads, *shape)
        return tuple(zeros(*size, dtype=kind, axis="kv_heads") for _ in range(config.layers))

    return Slots(
        column=jnp.zeros((), jnp.int32),
        next=zeros(1),
        keys=cache(config.head_width, columns),
        values=cache(columns, config.head_width),
        sample=zeros(slots) + samples,
        context=zeros(slots),
        generated=zeros(slots),
        token=zeros(slots),
        tokens=zeros(samples, settings.max_new_tokens) + settings.pad_token,
        logprobs=zeros(samples, settings.max_new_tokens, dtype=jnp.float32),
        lengths=zeros(samples),
        finished=zeros(samples, dtype=jnp.bool),
    )


@sharding.jit(static=("config", "settings", "fewer"), donate="state")
def decode(
    config: DecoderConfig,
    settings: Settings,
    fewer: int,
    weights: Weights,
    prefix: Prefix,
    queue: Queue,
    key: Key[Array, ""],
    state: Slots,
) -> tuple[Slots, Status]:
    """Samples until the queue is done or another size suits better: more columns, far fewer
    columns, or only `fewer` slots (0: never)."""

    def local(weights: Weights, caches: Any, queue: Queue, key: Array, state: Slots) -> Any:
        prefix = Prefix(*caches)
        columns = state.keys[0].shape[-1]

        def suits(state: Slots) -> Array:
            status = _status(settings, queue, state)
            enough = status.needed <= columns
            wasteful = (columns > capacity(1)) & (columns >= SPARE * status.needed)
            emptier = (status.waiting == 0) & (status.busy <= fewer)
            return (status.busy + status.waiting > 0) & enough & ~wasteful & ~emptier

        def step(state: Slots) -> Slots:
            state = _refill(settings, prefix, queue, state)
            return _step(config, settings, weights, queue, key, state)

        state = jax.lax.while_loop(suits, step, state)
        return state, _status(settings, queue, state)

    along = sharding.along
    whole, sharded = P(), _slots_specs(state)
    specs = (whole, (along(2), along(1)), along(0), whole, sharded)
    outputs = (sharded, whole)
    return sharding.locally(local, specs, outputs)(weights, tuple(prefix), queue, key, state)


@sharding.jit(static=("slots", "columns"))
def resize(state: Slots, slots: int, columns: int) -> Slots:
    """Returns the state with so many slots and columns per shard, which must hold what is busy."""

    def local(state: Slots) -> Slots:
        idle = state.tokens.shape[0]
        kept = jnp.argsort(state.sample == idle, stable=True)[:slots]
        before = state.keys[0].shape[-1]
        age = (state.column - 1 - jnp.arange(columns)) % columns
        source = (state.column - 1 - age) % before

        def move(x: Array, axis: int) -> Array:
            # a column older than the ring was is garbage, which no context reaches
            return jnp.take(x[kept], source, axis=axis)

        return state._replace(
            keys=tuple(move(x, 3) for x in state.keys),
            values=tuple(move(x, 2) for x in state.values),
            **{name: getattr(state, name)[kept] for name in PER_SLOT},
        )

    specs = _slots_specs(state)
    return sharding.locally(local, (specs,), specs)(state)


def _status(settings: Settings, queue: Queue, state: Slots) -> Status:
    """Returns the loop's status, the same on all shards."""
    total = queue.real[0] * settings.samples
    active = state.sample < state.tokens.shape[0]
    waiting = jnp.maximum(total - state.next[0], 0)
    nearest = queue.lengths[_prompt(settings, queue, state.next[0])]
    # The next sample's prompt may be longer than anything in the slots.
    entering = jnp.where((waiting > 0) & ~jnp.all(active), nearest, 0)
    needed = jnp.maximum(jnp.max(jnp.where(active, state.context + 1, 0)), entering)
    local = jnp.stack([jnp.sum(active), needed, waiting])
    axes = sharding.manual_axes()
    return Status(*(jax.lax.pmax(local, axes) if axes else local))


def _refill(settings: Settings, prefix: Prefix, queue: Queue, state: Slots) -> Slots:
    """Gives idle slots the next samples of the queue, as far as their prompts fit.

    A prompt's last token is not inserted but becomes the slot's newest token: the step that runs it
    draws the response's first token like any other.
    """
    idle = state.tokens.shape[0]
    columns = state.keys[0].shape[-1]
    total = queue.real[0] * settings.samples

    def going_on(state: Slots) -> Array:
        fits = queue.lengths[_prompt(settings, queue, state.next[0])] <= columns
        return jnp.any(state.sample == idle) & (state.next[0] < total) & fits

    def insert(state: Slots) -> Slots:
        slot = jnp.argmax(state.sample == idle)
        row = _prompt(settings, queue, state.next[0])
        cached = queue.lengths[row] - 1
        age = (state.column - 1 - jnp.arange(columns)) % columns
        source = jnp.clip(queue.starts[row] + cached - 1 - age, 0, prefix.keys[0].shape[-1] - 1)

        def write(target: Array, line: Array, axis: int) -> Array:
            new = jnp.take(line, source, axis=axis)
            return jax.lax.dynamic_update_slice_in_dim(target, new[None], slot, axis=0)

        return state._replace(
            next=state.next + 1,
            keys=tuple(write(x, y, 2) for x, y in zip(state.keys, prefix.keys, strict=True)),
            values=tuple(write(x, y, 1) for x, y in zip(state.values, prefix.values, strict=True)),
            sample=state.sample.at[slot].set(state.next[0]),
            context=state.context.at[slot].set(cached),
            generated=state.generated.at[slot].set(0),
            token=state.token.at[slot].set(queue.last_tokens[row]),
        )

    return jax.lax.while_loop(going_on, insert, state)


def _step(
    config: DecoderConfig,
    settings: Settings,
    weights: Weights,
    queue: Queue,
    key: Array,
    state: Slots,
) -> Slots:
    """Runs the newest token of every slot and draws the next one."""
    idle = state.tokens.shape[0]
    active = state.sample < idle
    state, logits = _forward(config, weights, state)
    uniform = _uniform(settings, queue, key, state)
    token, logprob = sample(logits, uniform, settings.sampler)
    ended = jnp.any(token[:, None] == jnp.asarray(settings.end_tokens, jnp.int32), axis=-1)
    generated = state.generated + 1
    limit = queue.limits[_prompt(settings, queue, state.sample)]
    done = active & (ended | (generated >= limit))
    place = (state.sample, state.generated)  # of an idle slot: beyond the results, so dropped
    return state._replace(
        column=state.column + 1,
        sample=jnp.where(done, idle, state.sample),
        generated=generated,
        token=token,
        tokens=state.tokens.at[place].set(token, mode="drop"),
        logprobs=state.logprobs.at[place].set(logprob, mode="drop"),
        lengths=state.lengths.at[state.sample].set(generated, mode="drop"),
        finished=state.finished.at[state.sample].set(ended, mode="drop"),
    )


def _uniform(
    settings: Settings, queue: Queue, key: Key[Array, ""], state: Slots
) -> Float[Array, " S"]:
    """Returns one random number per slot, a function of its sample and position alone."""
    fold = jax.random.fold_in

    def one(index: Array, sample: Array, position: Array) -> Array:
        return jax.random.uniform(fold(fold(fold(key, index), sample), position))

    index = queue.indices[_prompt(settings, queue, state.sample)]
    return jax.vmap(one)(index, state.sample % settings.samples, state.generated)


def _prompt(settings: Settings, queue: Queue, sample: Int[Array, "*S"]) -> Int[Array, "*S"]:
    """Returns the sample's place in the queue; of one past the end, the last place."""
    return jnp.minimum(sample // settings.samples, len(queue.lengths) - 1)


def _forward(
    config: DecoderConfig, weights: Weights, state: Slots
) -> tuple[Slots, Float[Array, "S V"]]:
    """Runs the newest token of every slot; returns the grown caches and the next logits."""
    context = state.context + 1
    columns = state.keys[0].shape[-1]
    column = state.column % columns
    seen = (state.column - jnp.arange(columns)) % columns < context[:, None]
    angles = decoder.rotation(config, state.context)
    x = decoder.embed(config, weights.rest, state.token)
    keys, values = [], []
    for layer, layer_params in enumerate(weights.layers):
        block = nnx.merge(decoder.block_graph(config), layer_params)
        attend = partial(_attend, state.keys[layer], state.values[layer], column, seen)
        x, (new_keys, new_values) = block(x, angles, attend)
        keys.append(new_keys)
        values.append(new_values)
    x = decoder.final_norm(config, weights.rest, x)
    # Many rows by few columns: in this order the product is 2 to 3 times as fast on a CPU.
    logits = jnp.einsum(
        "vd,sd->vs", weights.head, x, out_sharding=sharding.spec("vocabulary", None)
    )
    logits = sharding.reshard(jax.lax.optimization_barrier(logits).T, None, None)
    state = state._replace(keys=tuple(keys), values=tuple(values), context=context)
    return state, logits.astype(jnp.float32)


def _attend(
    keys: Float[Array, "S K C T"],
    values: Float[Array, "S K T C"],
    column: Int[Array, ""],
    seen: Bool[Array, "S T"],
    query: Float[Array, "S H C"],
    key: Float[Array, "S K C"],
    value: Float[Array, "S K C"],
) -> tuple[Float[Array, "S H C"], tuple[Array, Array]]:
    """Writes the newest key and value into the column, and attends to what each slot has seen."""
    slots, kv_heads, width, _ = keys.shape
    shared = query.shape[1] // kv_heads
    split = sharding.spec(None, "kv_heads", None, None)
    q = query.reshape(slots, kv_heads, shared, width, out_sharding=split)
    q = q * jnp.asarray(width**-0.5, q.dtype)
    update = jax.lax.dynamic_update_slice_in_dim
    keys = update(keys, key[..., None], column, axis=3)
    values = update(values, value[:, :, None], column, axis=2)
    kind = jnp.float32
    scores = jnp.einsum("skgc,skct->skgt", q, keys, preferred_element_type=kind)
    scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    scores = jnp.exp(scores - scores.max(-1, keepdims=True))
    mixed = jnp.einsum(
        "skgt,sktc->skgc", scores.astype(q.dtype), values, preferred_element_type=kind
    )
    out = (mixed / scores.sum(-1, keepdims=True)).astype(q.dtype)
    return out.reshape(query.shape, out_sharding=sharding.spec(None, "heads", None)), (keys, values)


def _slots_specs(state: Slots) -> Slots:
    specs = jax.tree.map(lambda _: sharding.along(0), state)
    return specs._replace(column=P())

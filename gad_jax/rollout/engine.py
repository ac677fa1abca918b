"""Sampling as three compiled programs: `prefill`, once per prompt; `decode`, the loop; `resize`.

The loop works on slots. A slot holds one response; when it ends, the next sample of the queue takes
the slot inside the loop, so the host waits for nothing. `decode` returns only when all is done or
when another size suits what is left: a larger or smaller cache, or fewer slots. `resize` moves the
slots that go on into arrays of that size, so cost follows the tokens that are present.

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
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key

from gad_jax import sharding
from gad_jax.models import decoder
from gad_jax.models.decoder import DecoderConfig
from gad_jax.rollout.queue import Queue, capacity, fewer_slots, make_queue
from gad_jax.rollout.sampling import GREEDY, Sampler, sample
from gad_jax.types import Params, Rollout, Segments


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a compiled rollout is specialised for; `slots` are those of one data shard, and 0 takes
    `default_slots`."""

    samples: int
    max_new_tokens: int
    end_tokens: tuple[int, ...]
    pad_token: int
    sampler: Sampler = GREEDY
    slots: int = 0


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


class Segment(NamedTuple):
    """One call of `decode`: so many slots and columns per shard, for so many steps."""

    slots: int
    columns: int
    steps: int


@sharding.jit(static="config")
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


@sharding.jit(static=("config", "size"))
def prefill(
    config: DecoderConfig,
    params: Params,
    size: int,
    tokens: Int[Array, "M W"],
    positions: Int[Array, "M W"],
    own: Int[Array, "M W"],
) -> Prefix:
    """Runs prompts packed into rows, `own` numbering them within their row, and keeps their cache:
    `size` tokens per data shard, at least those of its rows."""
    rows, width = tokens.shape
    _, cache = decoder.hidden(
        config, params, tokens, positions, Segments(own, own), collect_cache=True
    )
    shards = _shards()

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
        return _locally(lambda x: jnp.pad(x, padding), (_along(at),), _along(at))(z)

    keys = tuple(line(cache[0][i], (1, 3, 0, 2)) for i in range(config.layers))
    values = tuple(line(cache[1][i], (1, 0, 2, 3)) for i in range(config.layers))
    return Prefix(keys, values)


@sharding.jit(static=("config", "settings", "slots", "columns", "samples"))
def start(
    config: DecoderConfig, settings: Settings, slots: int, columns: int, samples: int
) -> Slots:
    """Returns idle slots with caches of so many columns, and empty results; counts per shard."""
    shards = _shards()
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

    def local(weights: Weights, prefix: Prefix, queue: Queue, key: Array, state: Slots) -> Any:
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

    sharded = _slots_specs(state)
    queue_specs = jax.tree.map(lambda _: _along(0), queue)
    prefix_specs = Prefix((_along(2),) * config.layers, (_along(1),) * config.layers)
    specs = (_nowhere(weights), prefix_specs, queue_specs, P(), sharded)
    outputs = (sharded, Status(P(), P(), P()))
    return _locally(local, specs, outputs)(weights, prefix, queue, key, state)


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
    return _locally(local, (specs,), specs)(state)


SPARE = 3
"""A cache with so many times the columns that are needed is replaced by a smaller one."""

PER_SLOT = ("sample", "context", "generated", "token")


def generate(
    config: DecoderConfig,
    params: Params,
    prompts: list[np.ndarray],
    indices: np.ndarray,
    key: Array,
    settings: Settings,
    mesh: jax.sharding.Mesh,
    weights: Weights | None = None,
    limits: np.ndarray | None = None,
) -> Rollout:
    """Returns responses to ragged prompts, as numpy arrays; `indices` number the prompts for the
    random keys. Pass `weights` (from `prepare`) where several batches share them, and `limits`
    where prompts have limits of their own, each at most `settings.max_new_tokens`.

    Example: two prompts, `settings.samples` = 4, at most 16 tokens → tokens [2, 4, 16].
    """
    return trace(config, params, prompts, indices, key, settings, mesh, weights, limits)[0]


def trace(
    config: DecoderConfig,
    params: Params,
    prompts: list[np.ndarray],
    indices: np.ndarray,
    key: Array,
    settings: Settings,
    mesh: jax.sharding.Mesh,
    weights: Weights | None = None,
    limits: np.ndarray | None = None,
) -> tuple[Rollout, tuple[Segment, ...]]:
    """Returns what `generate` does, and how the loop went."""
    shards = sharding.data_shards(mesh)
    if limits is None:
        limits = np.full(len(prompts), settings.max_new_tokens)
    packed = make_queue(prompts, indices, limits, shards)
    rows = sharding.put(packed.rows, mesh, "batch")
    queue = sharding.put(packed.queue, mesh, "batch")
    weights = prepare(config, params) if weights is None else weights
    prefix = prefill(config, params, packed.size, *rows)
    samples = packed.prompts_per_shard * settings.samples
    slots = min(settings.slots or default_slots(), samples)
    columns = capacity(packed.longest)
    state = start(config, settings, slots, columns, samples)
    segments: list[Segment] = []
    while True:
        fewer = fewer_slots(slots)
        state, status = decode(config, settings, fewer, weights, prefix, queue, key, state)
        busy, needed, waiting, ended = (int(x) for x in sharding.fetch((*status, state.column)))
        segments.append(Segment(slots, columns, ended - sum(part.steps for part in segments)))
        if busy + waiting == 0:
            break
        if waiting == 0 and busy <= fewer:
            slots = fewer
        columns = capacity(needed)
        state = resize(state, slots, columns)
    results = sharding.fetch((state.tokens, state.logprobs, state.lengths, state.finished))
    return Rollout(*(packed.in_order(x, settings.samples) for x in results)), tuple(segments)


def occupancy(rollout: Rollout, segments: tuple[Segment, ...], shards: int) -> float:
    """Returns the share of the slots' steps that drew a token of a response."""
    steps = shards * sum(part.slots * part.steps for part in segments)
    return float(np.sum(rollout.lengths)) / steps


def default_slots() -> int:
    """Returns the slots of a data shard: a CPU is busy with few, an accelerator waits for memory."""
    return 32 if jax.default_backend() == "cpu" else 256


def cache_bytes(config: DecoderConfig, slots: int, longest: int) -> int:
    """Returns the largest size of a data shard's caches while sequences are at most `longest`."""
    token = 2 * config.layers * config.kv_heads * config.head_width
    return token * jnp.dtype(config.compute_dtype).itemsize * slots * capacity(longest)


def _status(settings: Settings, queue: Queue, state: Slots) -> Status:
    """Returns the loop's status, the same on all shards."""
    total = queue.count[0] * settings.samples
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
    total = queue.count[0] * settings.samples

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
    logits = jnp.einsum("vd,sd->vs", weights.head, x, out_sharding=sharding.spec("vocabulary", None))
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


def _shards() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else sharding.data_shards(mesh)


def _along(axis: int) -> P:
    """Returns the spec of an array whose `axis` is split over the data shards."""
    return P(*(None,) * axis, sharding.DATA_AXES)


def _nowhere(tree: Any) -> Any:
    return jax.tree.map(lambda _: P(), tree)


def _slots_specs(state: Slots) -> Slots:
    specs = jax.tree.map(lambda _: _along(0), state)
    return specs._replace(column=P())


def _locally(function: Any, in_specs: Any, out_specs: Any) -> Any:
    """Returns the function of one data shard; within it, the tensor axis is as anywhere else."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(
        function,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=set(sharding.DATA_AXES),
        check_vma=False,
    )

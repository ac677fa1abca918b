"""Sampling: prompts in, responses out. A host loop calls a compiled decode loop.

The weights are the training weights, gathered, cast and split by layer once per rollout
(`prefill.py`): unrolled layers update their KV caches in place, where a scan would copy them.

In the compiled loop every slot holds a response, and takes the next sample when it ends. The refill
is inside the loop, so the host waits for nothing. `decode` returns only when all is done or when
another size suits what is left: a larger or smaller KV cache, or fewer slots. `resize` moves the
busy slots into arrays of that size, so the cost follows the tokens that are present.

Randomness is folded from (key, prompt index, sample index, position), so a sample does not depend
on its slot, on which others are drawn in the same batch, nor on the devices.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key

from gad_jax.distributed import devices, parallel, sharding
from gad_jax.distributed.mesh import data_shards
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import ring
from gad_jax.rollout.memory import default_slots
from gad_jax.rollout.prefill import prefill, prepare
from gad_jax.rollout.queue import Queue, capacity, fewer_slots, is_wasteful, make_queue
from gad_jax.rollout.ring import PromptCache, RingCache, Weights, zeros
from gad_jax.rollout.sampling import GREEDY, Sampler, sample
from gad_jax.types import Params, Rollout


@dataclasses.dataclass(frozen=True)
class RolloutProgram:
    """What a compiled rollout is specialised for; `slots` are those of one data shard, and 0 takes
    `memory.default_slots`."""

    samples: int
    max_new_tokens: int
    end_tokens: tuple[int, ...]
    pad_token: int
    sampler: Sampler = GREEDY
    slots: int = 0
    longest: int = 0
    """Most tokens of a prompt and its response together, which bounds the caches; 0: any."""
    move_to_fewer: bool = True
    """Whether the last samples move to fewer slots, each number of which is another program."""


class DecodeCall(NamedTuple):
    """One call of `decode`: so many slots and columns per shard, for so many steps."""

    slots: int
    columns: int
    steps: int


def generate(
    config: DecoderConfig,
    params: Params,
    prompts: list[np.ndarray],
    indices: np.ndarray,
    key: Array,
    settings: RolloutProgram,
    mesh: jax.sharding.Mesh,
    weights: Weights | None = None,
    limits: np.ndarray | None = None,
) -> Rollout:
    """Returns responses to ragged prompts, as numpy arrays; `indices` number the prompts for the
    random keys. Pass `weights` (from `prepare`) where several batches share them, and `limits`
    where prompts have limits of their own, each at most `settings.max_new_tokens`.

    Example: two prompts, `settings.samples` = 4, at most 16 tokens → tokens [2, 4, 16].
    """
    return sample_responses(config, params, prompts, indices, key, settings, mesh, weights, limits)[
        0
    ]


def sample_responses(
    config: DecoderConfig,
    params: Params,
    prompts: list[np.ndarray],
    indices: np.ndarray,
    key: Array,
    settings: RolloutProgram,
    mesh: jax.sharding.Mesh,
    weights: Weights | None = None,
    limits: np.ndarray | None = None,
) -> tuple[Rollout, tuple[DecodeCall, ...]]:
    """Returns what `generate` does, and how the loop went."""
    shards = data_shards(mesh)
    if limits is None:
        limits = np.full(len(prompts), settings.max_new_tokens)
    packed = make_queue(prompts, indices, limits, shards)
    most = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    assert not settings.longest or most <= settings.longest
    rows = devices.put(packed.rows, mesh, "batch")
    queue = devices.put(packed.queue, mesh, "batch")
    weights = prepare(config, params) if weights is None else weights
    prefix = prefill(config, params, packed.size, *rows)
    samples = packed.prompts_per_shard * settings.samples
    slots = min(settings.slots or default_slots(), samples)
    columns = capacity(packed.longest, settings.longest)
    state = start(config, settings, slots, columns, samples)
    segments: list[DecodeCall] = []
    while True:
        fewer = fewer_slots(slots) if settings.move_to_fewer else 0
        state, status = decode(config, settings, fewer, weights, prefix, queue, key, state)
        busy, needed, waiting, ended = (int(x) for x in devices.fetch((*status, state.ring.column)))
        segments.append(DecodeCall(slots, columns, ended - sum(part.steps for part in segments)))
        if busy + waiting == 0:
            break
        if waiting == 0 and busy <= fewer:
            slots = fewer
        columns = capacity(needed, settings.longest)
        state = resize(state, slots, columns)
    results = (state.tokens, state.logprobs, state.lengths, state.finished)
    ordered: list[Any] = [packed.in_order(x, settings.samples) for x in devices.fetch(results)]
    return Rollout(*ordered), tuple(segments)


def occupancy(rollout: Rollout, segments: tuple[DecodeCall, ...], shards: int) -> float:
    """Returns the share of the slots' steps that drew a token of a response."""
    steps = shards * sum(part.slots * part.steps for part in segments)
    return float(np.sum(rollout.lengths)) / steps


class Slots(NamedTuple):
    """The state of the decode loop on one data shard; S slots, Q samples of the shard's queue.

    A slot's `sample` is Q when it is idle, and `generated` counts the tokens of its response. The
    last four are the results, in the order of the queue.
    """

    ring: RingCache
    next: Int[Array, " 1"]
    sample: Int[Array, " S"]
    generated: Int[Array, " S"]
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


@jax.jit(static_argnames=("config", "settings", "slots", "columns", "samples"))
def start(
    config: DecoderConfig, settings: RolloutProgram, slots: int, columns: int, samples: int
) -> Slots:
    """Returns idle slots with caches of so many columns, and empty results; counts per shard."""
    return Slots(
        ring=ring.make(config, slots, columns),
        next=zeros(1),
        sample=zeros(slots) + samples,
        generated=zeros(slots),
        tokens=zeros(samples, settings.max_new_tokens) + settings.pad_token,
        logprobs=zeros(samples, settings.max_new_tokens, dtype=jnp.float32),
        lengths=zeros(samples),
        finished=zeros(samples, dtype=jnp.bool),
    )


@jax.jit(static_argnames=("config", "settings", "fewer"), donate_argnames="state")
def decode(
    config: DecoderConfig,
    settings: RolloutProgram,
    fewer: int,
    weights: Weights,
    prefix: PromptCache,
    queue: Queue,
    key: Key[Array, ""],
    state: Slots,
) -> tuple[Slots, Status]:
    """Samples until the queue is done or another size suits better: more columns, far fewer
    columns, or only `fewer` slots (0: never)."""

    def local(weights: Weights, caches: Any, queue: Queue, key: Array, state: Slots) -> Any:
        prefix = PromptCache(*caches)
        columns = state.ring.columns

        def suits(state: Slots) -> Array:
            status = _status(settings, queue, state)
            enough = status.needed <= columns
            wasteful = is_wasteful(columns, status.needed)
            emptier = (status.waiting == 0) & (status.busy <= fewer)
            return (status.busy + status.waiting > 0) & enough & ~wasteful & ~emptier

        def step(state: Slots) -> Slots:
            state = _refill(settings, prefix, queue, state)
            return _step(config, settings, weights, queue, key, state)

        state = jax.lax.while_loop(suits, step, state)
        return state, _status(settings, queue, state)

    along = parallel.batch_spec
    whole, sharded = P(), _slots_specs(state)
    specs = (whole, (along(2), along(1)), along(0), whole, sharded)
    outputs = (sharded, whole)
    return parallel.shard_map(local, specs, outputs)(weights, tuple(prefix), queue, key, state)


@jax.jit(static_argnames=("slots", "columns"))
def resize(state: Slots, slots: int, columns: int) -> Slots:
    """Returns the state with so many slots and columns per shard, which must hold what is busy."""

    def local(state: Slots) -> Slots:
        idle = state.tokens.shape[0]
        kept = jnp.argsort(state.sample == idle, stable=True)[:slots]
        return state._replace(
            ring=ring.resized(state.ring, kept, columns),
            sample=state.sample[kept],
            generated=state.generated[kept],
        )

    specs = _slots_specs(state)
    return parallel.shard_map(local, (specs,), specs)(state)


def _status(settings: RolloutProgram, queue: Queue, state: Slots) -> Status:
    """Returns the loop's status, the same on all shards."""
    total = queue.real[0] * settings.samples
    active = state.sample < state.tokens.shape[0]
    waiting = jnp.maximum(total - state.next[0], 0)
    nearest = queue.lengths[_prompt(settings, queue, state.next[0])]
    # The next sample's prompt may be longer than anything in the slots.
    entering = jnp.where((waiting > 0) & ~jnp.all(active), nearest, 0)
    needed = jnp.maximum(jnp.max(jnp.where(active, state.ring.context + 1, 0)), entering)
    local = jnp.stack([jnp.sum(active), needed, waiting])
    axes = sharding.manual_axes()
    return Status(*(jax.lax.pmax(local, axes) if axes else local))


def _refill(settings: RolloutProgram, prefix: PromptCache, queue: Queue, state: Slots) -> Slots:
    """Gives idle slots the next samples of the queue, as far as their prompts fit."""
    idle = state.tokens.shape[0]
    total = queue.real[0] * settings.samples

    def going_on(state: Slots) -> Array:
        fits = queue.lengths[_prompt(settings, queue, state.next[0])] <= state.ring.columns
        return jnp.any(state.sample == idle) & (state.next[0] < total) & fits

    def insert(state: Slots) -> Slots:
        slot = jnp.argmax(state.sample == idle)
        row = _prompt(settings, queue, state.next[0])
        prompt = (queue.starts[row], queue.lengths[row] - 1, queue.last_tokens[row])
        return state._replace(
            ring=ring.insert(state.ring, prefix, slot, *prompt),
            next=state.next + 1,
            sample=state.sample.at[slot].set(state.next[0]),
            generated=state.generated.at[slot].set(0),
        )

    return jax.lax.while_loop(going_on, insert, state)


def _step(
    config: DecoderConfig,
    settings: RolloutProgram,
    weights: Weights,
    queue: Queue,
    key: Array,
    state: Slots,
) -> Slots:
    """Runs the newest token of every slot and draws the next one."""
    idle = state.tokens.shape[0]
    active = state.sample < idle
    grown, logits = ring.forward(config, weights, state.ring)
    uniform = _uniform(settings, queue, key, state)
    token, logprob = sample(logits, uniform, settings.sampler)
    ended = jnp.any(token[:, None] == jnp.asarray(settings.end_tokens, jnp.int32), axis=-1)
    generated = state.generated + 1
    limit = queue.limits[_prompt(settings, queue, state.sample)]
    done = active & (ended | (generated >= limit))
    place = (state.sample, state.generated)  # of an idle slot: beyond the results, so dropped
    return state._replace(
        ring=grown._replace(token=token),
        sample=jnp.where(done, idle, state.sample),
        generated=generated,
        tokens=state.tokens.at[place].set(token, mode="drop"),
        logprobs=state.logprobs.at[place].set(logprob, mode="drop"),
        lengths=state.lengths.at[state.sample].set(generated, mode="drop"),
        finished=state.finished.at[state.sample].set(ended, mode="drop"),
    )


def _uniform(
    settings: RolloutProgram, queue: Queue, key: Key[Array, ""], state: Slots
) -> Float[Array, " S"]:
    """Returns one random number per slot, a function of its sample and position alone."""
    fold = jax.random.fold_in

    def one(index: Array, sample: Array, position: Array) -> Array:
        return jax.random.uniform(fold(fold(fold(key, index), sample), position))

    index = queue.indices[_prompt(settings, queue, state.sample)]
    return jax.vmap(one)(index, state.sample % settings.samples, state.generated)


def _prompt(settings: RolloutProgram, queue: Queue, sample: Int[Array, "*S"]) -> Int[Array, "*S"]:
    """Returns the sample's place in the queue; of one past the end, the last place."""
    return jnp.minimum(sample // settings.samples, len(queue.lengths) - 1)


def _slots_specs(state: Slots) -> Slots:
    specs = jax.tree.map(lambda _: parallel.batch_spec(0), state)
    return specs._replace(ring=ring.specs(state.ring))

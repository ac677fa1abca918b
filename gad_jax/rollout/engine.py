"""Sampling: prompts in, responses out. A host loop calls a compiled decode loop.

One rollout: the prompts are dealt to the data shards (`queue.py`), the decode copy of the weights
and the prompt KV cache are made (`prefill.py`), then `decode` is called until every sample is done.

In the compiled loop every slot holds a response and takes the next sample when that one ends. The
refill is inside the loop, so the host waits for nothing. `decode` returns only when all is done, or
when another size fits what is left: a larger or smaller KV cache, or fewer slots. `resize` then
moves the busy slots into arrays of that size, so the cost follows the tokens in the cache.

Random numbers are folded from (key, prompt index, sample index, position). A sample therefore does
not depend on its slot, on what else is drawn in the same batch, or on the number of devices.

How a token runs through the network is in `ring.py`, how it is drawn in `sampling.py`.
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
from gad_jax.rollout.prefill import decode_copy, prefill
from gad_jax.rollout.queue import Queue, cache_capacity, fewer_slots, is_wasteful, make_queue
from gad_jax.rollout.ring import DecodeCopy, PromptCache, RingCache, zeros
from gad_jax.rollout.sampling import GREEDY, Sampler, sample_shaped, shape_logits, thresholds
from gad_jax.types import Params, Rollout


@dataclasses.dataclass(frozen=True)
class RolloutProgram:
    """What a compiled rollout is specialised for: another value is another compiled program."""

    samples: int
    max_new_tokens: int
    end_tokens: tuple[int, ...]
    pad_token: int
    sampler: Sampler = GREEDY
    slots: int = 0
    """Responses decoded at once on one data shard; 0: `memory.default_slots`."""
    longest: int = 0
    """Most tokens of a prompt and its response together, which bounds the KV cache; 0: any."""
    move_to_fewer: bool = True
    """Whether the last samples move to fewer slots; each number of slots is another program."""


class DecodeCall(NamedTuple):
    """One call of `decode`: slots per data shard, capacity of each, and the steps it ran."""

    slots: int
    capacity: int
    steps: int


def generate(
    config: DecoderConfig,
    params: Params,
    prompts: list[np.ndarray],
    indices: np.ndarray,
    key: Array,
    program: RolloutProgram,
    mesh: jax.sharding.Mesh,
    weights: DecodeCopy | None = None,
    limits: np.ndarray | None = None,
) -> Rollout:
    """Returns responses to ragged prompts, as numpy arrays.

    `indices` number the prompts for the random keys. Pass `weights` (from `prefill.decode_copy`)
    where several batches share them. `limits` are the most new tokens of each prompt, at most
    `program.max_new_tokens`, which is the default for all.

    Example: two prompts, `program.samples` = 4, at most 16 tokens → tokens [2, 4, 16].
    """
    rollout, _ = sample_responses(
        config, params, prompts, indices, key, program, mesh, weights, limits
    )
    return rollout


def sample_responses(
    config: DecoderConfig,
    params: Params,
    prompts: list[np.ndarray],
    indices: np.ndarray,
    key: Array,
    program: RolloutProgram,
    mesh: jax.sharding.Mesh,
    weights: DecodeCopy | None = None,
    limits: np.ndarray | None = None,
) -> tuple[Rollout, tuple[DecodeCall, ...]]:
    """Returns what `generate` does, and the calls of `decode` that it took."""
    shards = data_shards(mesh)
    if limits is None:
        limits = np.full(len(prompts), program.max_new_tokens)
    packed = make_queue(prompts, indices, limits, shards)
    most = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    assert not program.longest or most <= program.longest
    rows = devices.put(packed.rows, mesh, "batch")
    queue = devices.put(packed.queue, mesh, "batch")
    weights = decode_copy(config, params) if weights is None else weights
    prompt_cache = prefill(config, params, packed.size, *rows)
    samples = packed.prompts_per_shard * program.samples
    slots = min(program.slots or default_slots(), samples)
    capacity = cache_capacity(packed.longest, program.longest)
    state = start(config, program, slots, capacity, samples)
    calls: list[DecodeCall] = []
    while True:
        fewer = fewer_slots(slots) if program.move_to_fewer else 0
        state, status = decode(
            config, program, capacity, fewer, weights, prompt_cache, queue, key, state
        )
        busy, needed, waiting, written = map(int, devices.fetch((*status, state.ring.written)))
        calls.append(DecodeCall(slots, capacity, written - sum(call.steps for call in calls)))
        if busy + waiting == 0:
            break
        if waiting == 0 and busy <= fewer:
            slots = fewer
        capacity = cache_capacity(needed, program.longest)
        state = resize(config, state, slots, capacity)
    results = (state.tokens, state.logprobs, state.lengths, state.finished)
    if state.thresholds is not None:
        results = (*results, state.thresholds)
    ordered: list[Any] = [packed.in_order(x, program.samples) for x in devices.fetch(results)]
    return Rollout(*ordered), tuple(calls)


def occupancy(rollout: Rollout, calls: tuple[DecodeCall, ...], shards: int) -> float:
    """Returns the share of all slot steps that drew a token of a response, in [0, 1]."""
    steps = shards * sum(call.slots * call.steps for call in calls)
    return float(np.sum(rollout.lengths)) / steps


class Slots(NamedTuple):
    """The state of the decode loop on one data shard; S slots, Q samples of the shard's queue.

    `next` is the sample that enters a slot next. `sample` is what a slot decodes, or Q where it is
    idle: writes at Q fall outside the results and are dropped. `generated` counts the tokens of a
    slot's response. The last five are the results, in the order of the queue; without truncation
    there are no thresholds.
    """

    ring: RingCache
    next: Int[Array, " 1"]
    sample: Int[Array, " S"]
    generated: Int[Array, " S"]
    tokens: Int[Array, "Q R"]
    logprobs: Float[Array, "Q R"]
    lengths: Int[Array, " Q"]
    finished: Bool[Array, " Q"]
    thresholds: Float[Array, "Q R"] | None


class Status(NamedTuple):
    """What decides the next size: busy slots, positions needed, samples that wait.

    Each is the largest of all data shards, because all of them run the same program.
    """

    busy: Int[Array, ""]
    needed: Int[Array, ""]
    waiting: Int[Array, ""]


@jax.jit(static_argnames=("config", "program", "slots", "capacity", "samples"))
def start(
    config: DecoderConfig, program: RolloutProgram, slots: int, capacity: int, samples: int
) -> Slots:
    """Returns idle slots with an empty KV cache, and empty results; all counts are per shard."""
    numbers = (samples, program.max_new_tokens)
    return Slots(
        ring=ring.make(config, slots, capacity),
        next=zeros(1),
        sample=zeros(slots) + samples,
        generated=zeros(slots),
        tokens=zeros(*numbers) + program.pad_token,
        logprobs=zeros(*numbers, dtype=jnp.float32),
        lengths=zeros(samples),
        finished=zeros(samples, dtype=jnp.bool),
        thresholds=zeros(*numbers, dtype=jnp.float32) if program.sampler.truncates else None,
    )


@jax.jit(static_argnames=("config", "program", "capacity", "fewer"), donate_argnames="state")
def decode(
    config: DecoderConfig,
    program: RolloutProgram,
    capacity: int,
    fewer: int,
    weights: DecodeCopy,
    prompt_cache: PromptCache,
    queue: Queue,
    key: Key[Array, ""],
    state: Slots,
) -> tuple[Slots, Status]:
    """Samples until the queue is done or another size fits better than `capacity`, the state's.

    That is more capacity, far less capacity, or only `fewer` slots (0: never).
    """

    def local(weights: DecodeCopy, caches: Any, queue: Queue, key: Array, state: Slots) -> Any:
        prompt_cache = PromptCache(*caches)

        def should_continue(state: Slots) -> Array:
            status = _status(program, queue, state)
            enough = status.needed <= capacity
            wasteful = is_wasteful(capacity, status.needed)
            emptier = (status.waiting == 0) & (status.busy <= fewer)
            return (status.busy + status.waiting > 0) & enough & ~wasteful & ~emptier

        def step(state: Slots) -> Slots:
            state = _refill(program, capacity, prompt_cache, queue, state)
            return _step(config, program, weights, queue, key, state)

        state = jax.lax.while_loop(should_continue, step, state)
        return state, _status(program, queue, state)

    along = parallel.batch_spec
    whole, sharded = P(), _slots_specs(state)
    specs = (whole, (along(2), along(1)), along(0), whole, sharded)
    outputs = (sharded, whole)
    return parallel.shard_map(local, specs, outputs)(
        weights, tuple(prompt_cache), queue, key, state
    )


@jax.jit(static_argnames=("config", "slots", "capacity"))
def resize(config: DecoderConfig, state: Slots, slots: int, capacity: int) -> Slots:
    """Returns the state with other sizes per shard, which must hold the busy slots."""

    def local(state: Slots) -> Slots:
        idle = state.tokens.shape[0]
        kept = jnp.argsort(state.sample == idle, stable=True)[:slots]
        return state._replace(
            ring=ring.resized(config, state.ring, kept, capacity),
            sample=state.sample[kept],
            generated=state.generated[kept],
        )

    specs = _slots_specs(state)
    return parallel.shard_map(local, (specs,), specs)(state)


def _status(program: RolloutProgram, queue: Queue, state: Slots) -> Status:
    """Returns the loop's status, the same on all shards."""
    total = queue.real[0] * program.samples
    active = state.sample < state.tokens.shape[0]
    waiting = jnp.maximum(total - state.next[0], 0)
    nearest = queue.lengths[_prompt(program, queue, state.next[0])]
    # The next sample's prompt may be longer than anything in the slots.
    entering = jnp.where((waiting > 0) & ~jnp.all(active), nearest, 0)
    needed = jnp.maximum(jnp.max(jnp.where(active, state.ring.context + 1, 0)), entering)
    local = jnp.stack([jnp.sum(active), needed, waiting])
    axes = sharding.manual_axes()
    return Status(*(jax.lax.pmax(local, axes) if axes else local))


def _refill(
    program: RolloutProgram,
    capacity: int,
    prompt_cache: PromptCache,
    queue: Queue,
    state: Slots,
) -> Slots:
    """Gives idle slots the next samples of the queue, as far as their prompts fit."""
    idle = state.tokens.shape[0]
    total = queue.real[0] * program.samples

    def next_fits(state: Slots) -> Array:
        fits = queue.lengths[_prompt(program, queue, state.next[0])] <= capacity
        return jnp.any(state.sample == idle) & (state.next[0] < total) & fits

    def insert(state: Slots) -> Slots:
        slot = jnp.argmax(state.sample == idle)
        row = _prompt(program, queue, state.next[0])
        prompt = (queue.starts[row], queue.lengths[row] - 1, queue.last_tokens[row])
        return state._replace(
            ring=ring.insert(state.ring, prompt_cache, slot, *prompt),
            next=state.next + 1,
            sample=state.sample.at[slot].set(state.next[0]),
            generated=state.generated.at[slot].set(0),
        )

    return jax.lax.while_loop(next_fits, insert, state)


def _step(
    config: DecoderConfig,
    program: RolloutProgram,
    weights: DecodeCopy,
    queue: Queue,
    key: Array,
    state: Slots,
) -> Slots:
    """Runs the newest token of every slot and draws the next one."""
    idle = state.tokens.shape[0]
    active = state.sample < idle
    grown, logits = ring.forward(config, weights, state.ring)
    uniform = _uniform(program, queue, key, state)
    shaped = shape_logits(logits, program.sampler)
    token, logprob = sample_shaped(shaped, uniform, program.sampler)
    ended = jnp.any(token[:, None] == jnp.asarray(program.end_tokens, jnp.int32), axis=-1)
    generated = state.generated + 1
    limit = queue.limits[_prompt(program, queue, state.sample)]
    done = active & (ended | (generated >= limit))
    place = (state.sample, state.generated)  # an idle slot's is out of bounds: dropped below
    kept = state.thresholds
    if kept is not None:
        kept = kept.at[place].set(thresholds(logits, shaped, program.sampler), mode="drop")
    return state._replace(
        ring=grown._replace(token=token),
        sample=jnp.where(done, idle, state.sample),
        generated=generated,
        tokens=state.tokens.at[place].set(token, mode="drop"),
        logprobs=state.logprobs.at[place].set(logprob, mode="drop"),
        lengths=state.lengths.at[state.sample].set(generated, mode="drop"),
        finished=state.finished.at[state.sample].set(ended, mode="drop"),
        thresholds=kept,
    )


def _uniform(
    program: RolloutProgram, queue: Queue, key: Key[Array, ""], state: Slots
) -> Float[Array, " S"]:
    """Returns one random number per slot: a function of its sample and position only."""
    fold = jax.random.fold_in

    def one(index: Array, sample: Array, position: Array) -> Array:
        return jax.random.uniform(fold(fold(fold(key, index), sample), position))

    index = queue.indices[_prompt(program, queue, state.sample)]
    return jax.vmap(one)(index, state.sample % program.samples, state.generated)


def _prompt(program: RolloutProgram, queue: Queue, sample: Int[Array, "*S"]) -> Int[Array, "*S"]:
    """Returns the sample's place in the queue; of one past the end, the last place."""
    return jnp.minimum(sample // program.samples, len(queue.lengths) - 1)


def _slots_specs(state: Slots) -> Slots:
    specs = jax.tree.map(lambda _: parallel.batch_spec(0), state)
    return specs._replace(ring=ring.specs(state.ring))

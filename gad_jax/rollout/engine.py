"""Sampling: prompts in, responses out. A host loop calls a compiled decode loop.

One rollout: the prompts are dealt to the data shards (`queue.py`), the decode copy of the weights
and the prompt KV cache are made (`prefill.py`), then `decode` is called until every sample is done.

In the compiled loop (`slots.py`) every slot holds a response and takes the next sample when that
one ends. `decode` returns only when all is done, or when another size fits what is left: a larger
or smaller KV cache, or fewer slots. `resize` then moves the busy slots into arrays of that size, so
the cost follows the tokens in the cache.

On a GPU the loop runs several steps between two checks of its condition, for which the host waits.
A response that ends in between leaves its slot idle until the check, and what the slot draws then
is dropped. Capacity is checked for all of these steps.

Random numbers are folded from (key, prompt index, sample index, position). A sample therefore does
not depend on its slot, on what else is drawn in the same batch, or on the number of devices.

How a token runs through the network is in `ring.py`, how it is drawn in `sampling.py`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key

from gad_jax.distributed import devices, parallel
from gad_jax.distributed.mesh import data_shards
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import ring, slots
from gad_jax.rollout.memory import default_slots
from gad_jax.rollout.prefill import decode_copy, prefill
from gad_jax.rollout.queue import (
    PackedPrompts,
    Queue,
    cache_capacity,
    fewer_slots,
    is_wasteful,
    largest_capacity,
    make_queue,
)
from gad_jax.rollout.ring import DecodeCopy, PromptCache, zeros
from gad_jax.rollout.sampling import sample_shaped, shape_logits, thresholds
from gad_jax.rollout.slots import RolloutProgram, Slots, Status
from gad_jax.types import Params, Rollout


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
    sizes: set[int] | None = None,
) -> tuple[Rollout, tuple[DecodeCall, ...]]:
    """Returns what `generate` does, and the calls of `decode` that it took.

    `sizes` has those of the prompt KV cache in rollouts before, and gets that of this one. The
    largest is used again, because `decode` is compiled for each.
    """
    shards = data_shards(mesh)
    limits = np.full(len(prompts), program.max_new_tokens) if limits is None else limits
    packed = make_queue(prompts, indices, limits, shards)
    most = max(len(prompt) + int(limit) for prompt, limit in zip(prompts, limits, strict=True))
    assert not program.longest or most <= program.longest
    rows, queue = devices.put((packed.rows, packed.queue), mesh, "batch")
    weights = decode_copy(config, params) if weights is None else weights
    used = sizes if sizes is not None else set[int]()
    used.add(packed.size)
    prompt_cache = prefill(config, params, max(used), *rows)
    samples = packed.prompts_per_shard * program.samples
    count = min(program.slots or default_slots(), samples)
    capacity = _first_capacity(program, packed, most)
    state = start(config, program, count, capacity, samples)
    calls: list[DecodeCall] = []
    while True:
        fewer = fewer_slots(count) if program.move_to_fewer and program.resizes else 0
        state, status = decode(
            config, program, capacity, fewer, weights, prompt_cache, queue, key, state
        )
        busy, needed, waiting, _, written = map(int, devices.fetch((*status, state.ring.written)))
        calls.append(DecodeCall(count, capacity, written - sum(call.steps for call in calls)))
        if busy + waiting == 0:
            break
        if waiting == 0 and busy <= fewer:
            count = fewer
        capacity = cache_capacity(needed, program.longest)
        state = resize(config, state, count, capacity)
    results = (state.tokens, state.logprobs, state.lengths, state.finished)
    if state.thresholds is not None:
        results = (*results, state.thresholds)
    ordered: list[Any] = [packed.in_order(x, program.samples) for x in devices.fetch(results)]
    return Rollout(*ordered), tuple(calls)


def _first_capacity(program: RolloutProgram, packed: PackedPrompts, most: int) -> int:
    if program.resizes:
        return cache_capacity(packed.longest, program.longest)
    return largest_capacity(most, program.longest)


def occupancy(rollout: Rollout, calls: tuple[DecodeCall, ...], shards: int) -> float:
    """Returns the share of all slot steps that drew a token of a response, in [0, 1]."""
    steps = shards * sum(call.slots * call.steps for call in calls)
    return float(np.sum(rollout.lengths)) / steps


@jax.jit(static_argnames=("config", "program", "count", "capacity", "samples"))
def start(
    config: DecoderConfig, program: RolloutProgram, count: int, capacity: int, samples: int
) -> Slots:
    """Returns `count` idle slots with an empty KV cache, and empty results, of each data shard."""
    numbers = (samples, program.max_new_tokens)
    return Slots(
        ring=ring.make(config, count, capacity),
        next=zeros(1),
        sample=zeros(count) + samples,
        generated=zeros(count),
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
        refilling = (program, capacity, PromptCache(*caches), queue)

        def should_continue(state: Slots, most: int | None = None) -> Array:
            found = slots.status(program, queue, state)
            few = True if most is None else found.open <= most
            return _fits(program, found, capacity, fewer) & few

        def step(state: Slots) -> Slots:
            return _step(config, program, weights, queue, key, state)

        def refill_and_step(state: Slots) -> Slots:
            if program.steps == 1:
                return step(slots.refill_all(*refilling, state))
            state = slots.refill_some(*refilling, state)
            return jax.lax.fori_loop(0, program.steps, lambda _, state: step(state), state)

        def refill_and_run(state: Slots) -> Slots:
            few = partial(should_continue, most=slots.most_refilled(len(state.sample)))
            return jax.lax.while_loop(few, refill_and_step, slots.refill_all(*refilling, state))

        # The inner loop, where nearly all of the time goes, has no refill for which a host waits.
        body = refill_and_step if program.steps == 1 else refill_and_run
        state = jax.lax.while_loop(should_continue, body, state)
        return state, slots.status(program, queue, state)

    along = parallel.batch_spec
    whole, sharded = P(), slots.specs(state)
    specs = (whole, (along(2), along(1)), along(0), whole, sharded)
    outputs = (sharded, whole)
    return parallel.shard_map(local, specs, outputs)(
        weights, tuple(prompt_cache), queue, key, state
    )


def resize(config: DecoderConfig, state: Slots, count: int, capacity: int) -> Slots:
    """Returns the state with other sizes per shard; `count` slots must hold the busy ones.

    It frees the old cache.
    """
    kept = _busy_first(state.sample, state.lengths, count)
    return state._replace(
        ring=ring.resized(config, state.ring, kept, capacity),
        sample=ring.of_slots(state.sample, kept),
        generated=ring.of_slots(state.generated, kept),
    )


@jax.jit(static_argnames="count")
def _busy_first(
    sample: Int[Array, " S"], lengths: Int[Array, " Q"], count: int
) -> Int[Array, " count"]:
    """Returns `count` slots of each data shard, those that decode a sample before idle ones."""

    def local(sample: Array, lengths: Array) -> Array:
        idle = lengths.shape[0]
        return jnp.argsort(sample == idle, stable=True)[:count]

    along = parallel.batch_spec(0)
    return parallel.shard_map(local, (along, along), along)(sample, lengths)


def _fits(program: RolloutProgram, status: Status, capacity: int, fewer: int) -> Array:
    """Returns whether there is something to decode, and the slots have the right sizes for it."""
    left = status.busy + status.waiting > 0
    if not program.resizes:
        return left
    enough = status.needed <= capacity
    wasteful = is_wasteful(capacity, status.needed)
    emptier = (status.waiting == 0) & (status.busy <= fewer)
    return left & enough & ~wasteful & ~emptier


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
    uniform = slots.uniform(program, queue, key, state)
    shaped = shape_logits(logits, program.sampler)
    token, logprob = sample_shaped(shaped, uniform, program.sampler)
    ended = jnp.any(token[:, None] == jnp.asarray(program.end_tokens, jnp.int32), axis=-1)
    generated = state.generated + 1
    limit = queue.limits[slots.row(program, queue, state.sample)]
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

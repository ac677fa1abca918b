"""The state of the decode loop: slots, the samples that enter them, and what decides its next size.

`engine.py` runs the network on the slots and stores what it draws. The functions on `Slots` work on
one data shard, inside `jax.shard_map`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from gad_jax.distributed import devices, parallel, sharding
from gad_jax.rollout import ring
from gad_jax.rollout.queue import Queue
from gad_jax.rollout.ring import PromptCache, RingCache
from gad_jax.rollout.sampling import GREEDY, Sampler

_MOST_STEPS = 8


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
    resizes: bool = True
    """Whether KV cache and slots follow what is left to sample. Otherwise one program decodes, with
    room for the longest sequence in every slot."""
    steps_per_check: int = 0
    """Steps between two checks of the loop's condition; 0: `default_steps`."""

    @property
    def steps(self) -> int:
        """Steps between two checks, on the platform that is compiled for."""
        return self.steps_per_check or default_steps(self.max_new_tokens)


def default_steps(max_new_tokens: int) -> int:
    """Returns how many steps the decode loop runs between two checks of its condition.

    The host of a GPU reads each condition before it starts the next kernels, and with several
    devices a check is an all-reduce. A slot whose response ends is idle until the next check: on
    average for half of the steps, so short responses get fewer. Other platforms read the condition
    where they compute it, and a TPU's all-reduce of three numbers is small next to those in every
    layer.
    """
    if devices.platform() != "gpu":
        return 1
    return max(1, min(_MOST_STEPS, max_new_tokens // 16))


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

    The positions are those needed until the next check, and `open` counts idle slots for which a
    sample waits. Each is the largest of all data shards, because all of them run the same program.
    """

    busy: Int[Array, ""]
    needed: Int[Array, ""]
    waiting: Int[Array, ""]
    open: Int[Array, ""]


def specs(state: Slots) -> Slots:
    """Returns how its arrays are split over the data shards."""
    split = jax.tree.map(lambda _: parallel.batch_spec(0), state)
    return split._replace(ring=ring.specs(state.ring))


def status(program: RolloutProgram, queue: Queue, state: Slots) -> Status:
    """Returns the loop's status, the same on all shards."""
    active = state.sample < state.tokens.shape[0]
    waiting = jnp.maximum(_total(program, queue) - state.next[0], 0)
    free = jnp.sum(~active)
    # The next sample's prompt may be longer than anything in the slots.
    entering = jnp.where((waiting > 0) & (free > 0), _entering(program, queue, state.next[0]), 0)
    positions = _positions(program, queue, state.sample, state.ring.context)
    needed = jnp.maximum(jnp.max(jnp.where(active, positions, 0)), entering)
    local = jnp.stack([jnp.sum(active), needed, waiting, jnp.minimum(free, waiting)])
    axes = sharding.manual_axes()
    return Status(*(jax.lax.pmax(local, axes) if axes else local))


def refill_all(
    program: RolloutProgram, capacity: int, prompt_cache: PromptCache, queue: Queue, state: Slots
) -> Slots:
    """Gives idle slots the next samples of the queue, as far as their prompts fit."""
    idle = state.tokens.shape[0]

    def next_fits(state: Slots) -> Array:
        fits = _entering(program, queue, state.next[0]) <= capacity
        return jnp.any(state.sample == idle) & (state.next[0] < _total(program, queue)) & fits

    def insert(state: Slots) -> Slots:
        slot = jnp.argmax(state.sample == idle)
        prompt = _prompt(program, queue, state.next[0])
        return state._replace(
            ring=ring.insert(state.ring, prompt_cache, slot, *prompt),
            next=state.next + 1,
            sample=state.sample.at[slot].set(state.next[0]),
            generated=state.generated.at[slot].set(0),
        )

    return jax.lax.while_loop(next_fits, insert, state)


def most_refilled(slots: int) -> int:
    """Returns how many slots `refill_some` fills at most.

    It moves the cache of so many slots whether they are idle or not, so they are few. Of 64 slots
    with responses of 400 tokens, one or two end between two checks.
    """
    return max(1, slots // 16)


def refill_some(
    program: RolloutProgram, capacity: int, prompt_cache: PromptCache, queue: Queue, state: Slots
) -> Slots:
    """Does what `refill_all` does for at most `most_refilled` slots, without a loop.

    The host of a GPU waits for nothing in it.
    """
    idle, slots = state.tokens.shape[0], len(state.sample)
    offered = jnp.arange(most_refilled(slots))
    samples = state.next + offered
    free = state.sample == idle
    rank = jnp.cumsum(free)
    match = free & (rank == offered[:, None] + 1)
    fits = _entering(program, queue, samples) <= capacity
    fits &= jnp.any(match, axis=-1) & (samples < _total(program, queue))
    enters = jnp.cumsum(~fits) == 0  # in the order of the queue
    # Beyond the slots a write is dropped.
    slot = jnp.where(enters, jnp.argmax(match, axis=-1), slots + offered)
    return state._replace(
        ring=_insert_all(state.ring, prompt_cache, slot, *_prompt(program, queue, samples)),
        next=state.next + jnp.sum(enters),
        sample=state.sample.at[slot].set(samples, mode="drop"),
        generated=state.generated.at[slot].set(0, mode="drop"),
    )


def _insert_all(
    cache: RingCache, prompt_cache: PromptCache, slots: Int[Array, " n"], *prompts: Int[Array, " n"]
) -> RingCache:
    """Does what `ring.insert` does for several slots at once; those out of bounds are dropped."""
    one = jax.tree.map(lambda x: x[:1], cache._replace(written=None))  # its content is replaced
    one = one._replace(written=cache.written)
    made = jax.vmap(lambda *prompt: ring.insert(one, prompt_cache, jnp.int32(0), *prompt))(*prompts)

    def put(x: Array, new: Array) -> Array:
        return x.at[slots].set(new[:, 0], mode="drop", unique_indices=True)

    put_all: Any = jax.tree.map(put, cache._replace(written=None), made._replace(written=None))
    return put_all._replace(written=cache.written)


def uniform(
    program: RolloutProgram, queue: Queue, key: Key[Array, ""], state: Slots
) -> Float[Array, " S"]:
    """Returns one random number per slot: a function of its sample and position only."""
    fold = jax.random.fold_in

    def one(index: Array, sample: Array, position: Array) -> Array:
        return jax.random.uniform(fold(fold(fold(key, index), sample), position))

    index = queue.indices[row(program, queue, state.sample)]
    return jax.vmap(one)(index, state.sample % program.samples, state.generated)


def row(program: RolloutProgram, queue: Queue, sample: Int[Array, "*S"]) -> Int[Array, "*S"]:
    """Returns the place of the sample's prompt in the queue; of one past the end, the last."""
    return jnp.minimum(sample // program.samples, len(queue.lengths) - 1)


def _prompt(
    program: RolloutProgram, queue: Queue, sample: Int[Array, "*S"]
) -> tuple[Int[Array, "*S"], Int[Array, "*S"], Int[Array, "*S"]]:
    """Returns where the prompt starts in the prompt KV cache, its cached tokens, and its last."""
    where = row(program, queue, sample)
    return queue.starts[where], queue.lengths[where] - 1, queue.last_tokens[where]


def _total(program: RolloutProgram, queue: Queue) -> Int[Array, ""]:
    return queue.real[0] * program.samples


def _entering(program: RolloutProgram, queue: Queue, sample: Int[Array, "*S"]) -> Int[Array, "*S"]:
    """Returns the positions that a sample needs until the check after it enters."""
    cached = queue.lengths[row(program, queue, sample)] - 1
    return _positions(program, queue, sample, cached)


def _positions(
    program: RolloutProgram, queue: Queue, sample: Int[Array, "*S"], context: Int[Array, "*S"]
) -> Int[Array, "*S"]:
    """Returns the positions that samples with these contexts need until the next check.

    The last token of a response is not cached.
    """
    where = row(program, queue, sample)
    return jnp.minimum(context + program.steps, queue.lengths[where] + queue.limits[where] - 1)

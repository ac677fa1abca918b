"""Decoding for requests that come and go: the host fills and empties the slots.

KV cache and network are those of the rollout (`ring.py`). Here each slot has its own sampler and
seed, and the host sees every token. A token depends on the request's seed and its position only,
not on what the other slots decode.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from gad_jax.distributed import parallel
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import ring
from gad_jax.rollout.ring import DecodeCopy, PromptCache, RingCache, zeros
from gad_jax.rollout.sampling import RowSamplers, sample_rows


class Live(NamedTuple):
    """The state of S slots on one data shard; `generated` counts tokens drawn since `insert`."""

    ring: RingCache
    generated: Int[Array, " S"]
    seed: UInt32[Array, " S"]
    samplers: RowSamplers


@jax.jit(static_argnames=("config", "slots", "capacity"))
def start(config: DecoderConfig, slots: int, capacity: int) -> Live:
    """Returns empty slots with a KV cache of this capacity; both counts are per data shard."""
    reals = [zeros(slots, dtype=jnp.float32) for _ in range(3)]
    samplers = RowSamplers(reals[0], zeros(slots), reals[1], reals[2])
    return Live(
        ring.make(config, slots, capacity), zeros(slots), zeros(slots, dtype=jnp.uint32), samplers
    )


@jax.jit(donate_argnames="live")
def insert(
    live: Live,
    prompt_cache: PromptCache,
    slot: Int[Array, ""],
    length: Int[Array, ""],
    last_token: Int[Array, ""],
    seed: UInt32[Array, ""],
    sampler: RowSamplers,
) -> Live:
    """Returns the state with a prompt of `length` tokens in a slot; it must fit the capacity.

    `prompt_cache` holds this prompt only, and padding after it. `sampler` has one row.
    """

    def local(live: Live, caches: Any, *scalars: Array) -> Live:
        slot, length, last_token, seed, *sampler = scalars
        begin = jnp.zeros((), jnp.int32)
        samplers = zip(live.samplers, sampler, strict=True)
        return Live(
            ring.insert(live.ring, PromptCache(*caches), slot, begin, length - 1, last_token),
            live.generated.at[slot].set(0),
            live.seed.at[slot].set(seed),
            RowSamplers(*(rows.at[slot].set(row[0]) for rows, row in samplers)),
        )

    specs = _specs(live)
    scalars = (slot, length, last_token, seed, *sampler)
    given = (specs, (parallel.batch_spec(2), parallel.batch_spec(1)), *(jax.P() for _ in scalars))
    return parallel.shard_map(local, given, specs)(live, tuple(prompt_cache), *scalars)


@jax.jit(static_argnames="config", donate_argnames="live")
def step(
    config: DecoderConfig, weights: DecodeCopy, live: Live
) -> tuple[Live, Int[Array, " S"], Float[Array, " S"]]:
    """Runs every slot's newest token and draws the next one.

    Returns the state, the tokens and their log-probs. Empty slots draw too, and the caller ignores
    what they draw: all slots are one matmul, so leaving them out would save nothing.
    """

    def local(weights: DecodeCopy, live: Live) -> tuple[Live, Array, Array]:
        grown, logits = ring.forward(config, weights, live.ring)
        uniform = jax.vmap(_uniform)(live.seed, live.generated)
        token, logprob = sample_rows(logits, uniform, live.samplers)
        live = live._replace(ring=grown._replace(token=token), generated=live.generated + 1)
        return live, token, logprob

    specs = _specs(live)
    outputs = (specs, parallel.batch_spec(0), parallel.batch_spec(0))
    return parallel.shard_map(local, (jax.P(), specs), outputs)(weights, live)


def resize(config: DecoderConfig, live: Live, capacity: int) -> Live:
    """Returns the state with another capacity, which must hold the contexts still in use.

    It frees the old cache. The mesh has one data shard.
    """
    slots = jnp.arange(len(live.generated), dtype=jnp.int32)
    return live._replace(ring=ring.resized(config, live.ring, slots, capacity))


def _uniform(seed: UInt32[Array, ""], position: Int[Array, ""]) -> Float[Array, ""]:
    return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position))


def _specs(live: Live) -> Live:
    specs = jax.tree.map(lambda _: parallel.batch_spec(0), live)
    return specs._replace(ring=ring.specs(live.ring))

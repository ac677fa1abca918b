"""Decoding for requests that come and go: slots that are filled and emptied from the host.

The caches and the network are those of the rollout (`ring.py`); what differs is that a slot has a
sampler and a seed of its own, and that the host sees every token. What is drawn is a function of
the request's seed and the position alone, whatever is decoded beside it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from gad_jax.distributed import parallel
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import ring
from gad_jax.rollout.ring import PromptCache, RingCache, Weights, zeros
from gad_jax.rollout.sampling import RowSamplers, sample_rows


class Live(NamedTuple):
    """The state of S slots, on one data shard."""

    ring: RingCache
    generated: Int[Array, " S"]
    seed: UInt32[Array, " S"]
    samplers: RowSamplers


@jax.jit(static_argnames=("config", "slots", "columns"))
def start(config: DecoderConfig, slots: int, columns: int) -> Live:
    """Returns slots that hold nothing, with caches of so many columns."""
    reals = [zeros(slots, dtype=jnp.float32) for _ in range(3)]
    samplers = RowSamplers(reals[0], zeros(slots), reals[1], reals[2])
    return Live(
        ring.make(config, slots, columns), zeros(slots), zeros(slots, dtype=jnp.uint32), samplers
    )


@jax.jit(donate_argnames="live")
def insert(
    live: Live,
    prefix: PromptCache,
    slot: Int[Array, ""],
    length: Int[Array, ""],
    last_token: Int[Array, ""],
    seed: UInt32[Array, ""],
    sampler: RowSamplers,
) -> Live:
    """Returns the state with a prompt of `length` tokens in a slot, which must fit its columns.

    `prefix` is of this prompt alone and may be longer; `sampler` has one row.
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
    return parallel.shard_map(local, given, specs)(live, tuple(prefix), *scalars)


@jax.jit(static_argnames="config", donate_argnames="live")
def step(
    config: DecoderConfig, weights: Weights, live: Live
) -> tuple[Live, Int[Array, " S"], Float[Array, " S"]]:
    """Runs every slot's newest token and draws the next: the state, the tokens, their log-probs.

    Slots that hold nothing take part as well; what they draw is for nobody.
    """

    def local(weights: Weights, live: Live) -> tuple[Live, Array, Array]:
        grown, logits = ring.forward(config, weights, live.ring)
        uniform = jax.vmap(_uniform)(live.seed, live.generated)
        token, logprob = sample_rows(logits, uniform, live.samplers)
        live = live._replace(ring=grown._replace(token=token), generated=live.generated + 1)
        return live, token, logprob

    specs = _specs(live)
    outputs = (specs, parallel.batch_spec(0), parallel.batch_spec(0))
    return parallel.shard_map(local, (jax.P(), specs), outputs)(weights, live)


@jax.jit(static_argnames="columns")
def resize(live: Live, columns: int) -> Live:
    """Returns the state with so many columns, which must hold what is still wanted."""

    def local(live: Live) -> Live:
        slots = jnp.arange(len(live.generated))
        return live._replace(ring=ring.resized(live.ring, slots, columns))

    specs = _specs(live)
    return parallel.shard_map(local, (specs,), specs)(live)


def _uniform(seed: UInt32[Array, ""], position: Int[Array, ""]) -> Float[Array, ""]:
    return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position))


def _specs(live: Live) -> Live:
    specs = jax.tree.map(lambda _: parallel.batch_spec(0), live)
    return specs._replace(ring=ring.specs(live.ring))

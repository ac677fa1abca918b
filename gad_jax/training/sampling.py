"""Sampling in a step of training: the student's responses, and what it took to draw them."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gad_jax.data.epochs import PromptBatch
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import adapters
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import engine, prefill
from gad_jax.rollout.engine import DecodeCall, RolloutProgram
from gad_jax.training import randomness
from gad_jax.types import Frozen, Rollout, TrainState


class Sampling(NamedTuple):
    """A rollout, and what it took: seconds in all and of making the decode copy, and its size."""

    rollout: Rollout
    calls: tuple[DecodeCall, ...]
    seconds: float
    resharding: float
    weights_gib: float


def sample(
    network: DecoderConfig,
    program: RolloutProgram,
    mesh: Mesh,
    batch: PromptBatch,
    step: int,
    state: TrainState,
    frozen: Frozen,
    cache_sizes: set[int],
) -> Sampling:
    """Samples responses to the prompts of the step after `step`, with the weights of the state."""
    started = time.perf_counter()
    generator = adapters.join(frozen.generator, state.generator)
    with jax.profiler.TraceAnnotation("rollout"):
        weights = prefill.decode_copy(network, generator)
        jax.block_until_ready(weights)
        resharded = time.perf_counter()
        shared = prefill.shared(network, generator)
        weights_gib = (devices.device_bytes(weights) - devices.device_bytes(shared)) / 2**30
        rollout, calls = engine.sample_responses(
            network,
            generator,
            batch.prompts,
            # Places in the batch, not rows: a mixture may draw a row twice in a step, and its
            # samples must differ. Every process has the whole batch, so places are the same.
            np.arange(len(batch), dtype=np.int32),
            randomness.sampling_key(state.key, step),
            program,
            mesh,
            weights,
            sizes=cache_sizes,
        )
    seconds = time.perf_counter() - started
    return Sampling(rollout, calls, seconds, resharded - started, weights_gib)


def metrics(samplings: Sequence[Sampling], mesh: Mesh) -> dict[str, float]:
    """Returns what is measured of the sampling in an iteration; {} where there was none."""
    if not samplings:
        return {}
    lengths = np.concatenate([np.asarray(each.rollout.lengths) for each in samplings])
    calls = tuple(call for each in samplings for call in each.calls)
    together: Rollout = samplings[0].rollout._replace(lengths=lengths)
    seconds = sum(each.seconds for each in samplings)
    return {
        "rollout/occupancy": engine.occupancy(together, calls, data_shards(mesh)),
        "seconds/rollout": seconds,
        "tokens_per_second/rollout": float(lengths.sum()) / seconds,
        "reshard/gib": samplings[0].weights_gib,
        "seconds/reshard": sum(each.resharding for each in samplings),
    }

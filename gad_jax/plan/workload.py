"""The prompts and responses of one step. Only their lengths matter, and those are sampled."""

import dataclasses
from functools import partial
from typing import NamedTuple

import numpy as np

from gad_jax.core import layout, packing
from gad_jax.distributed import devices
from gad_jax.distributed.targets import Target
from gad_jax.plan import decoding
from gad_jax.rollout import engine, memory
from gad_jax.rollout.sampling import Sampler
from gad_jax.rollout.slots import default_steps
from gad_jax.settings import baselines
from gad_jax.settings.config import Config
from gad_jax.training.footprint import Lengths
from gad_jax.types import PackedRows


@dataclasses.dataclass(frozen=True)
class LognormalLengths:
    """Mean lengths in tokens, before the cut at the run's limits, and spreads of the logarithm."""

    prompt: float
    response: float
    prompt_spread: float = 0.9
    response_spread: float = 0.8


class Workload(NamedTuple):
    """The packed rows of one step, the lengths they hold, and the calls of `decode`.

    `pairs` are D's rows (teacher and student), `samples` are G's. The teacher's alone are `teacher`
    next to pairs, and `alone` without. `displaced` are the samples in whose place D sees older
    answers; None without replay. Of DPO are `preferences` and the calls that sample its snapshot.
    """

    pairs: PackedRows
    samples: PackedRows
    teacher: PackedRows
    alone: PackedRows
    prompts: np.ndarray
    responses: np.ndarray
    rectangle_padding: float
    calls: tuple[engine.DecodeCall, ...]
    displaced: PackedRows | None = None
    preferences: PackedRows | None = None
    snapshot_calls: tuple[engine.DecodeCall, ...] = ()

    @property
    def iterations(self) -> int:
        """Steps of the decode loop, over all its calls."""
        return sum(call.steps for call in self.calls)

    @property
    def padding(self) -> float:
        """The share of padding in the rows of a GAD step."""
        both = (self.pairs, self.samples)
        empty = sum(rows.tokens.size * packing.padding_share(rows) for rows in both)
        return empty / sum(rows.tokens.size for rows in both)


def _draw_lengths(
    config: Config, lengths: LognormalLengths, members: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lengths of the prompts, [B], and of so many responses to each."""
    rng = np.random.default_rng(0)
    count = config.batch.prompts

    def lognormal(mean: float, spread: float, cut: int, *shape: int) -> np.ndarray:
        # A lognormal's mean is exp(μ + spread²/2), so μ = log(mean) - spread²/2.
        drawn = rng.lognormal(np.log(mean) - spread**2 / 2, spread, shape)
        return np.clip(drawn.astype(int), 1, cut)

    prompts = lognormal(lengths.prompt, lengths.prompt_spread, config.data.max_prompt_tokens, count)
    limit = config.rollout.max_new_tokens
    return prompts, lognormal(lengths.response, lengths.response_spread, limit, count, members)


def _packed(
    row_tokens: int,
    shards: int,
    prompts: list[np.ndarray],
    answers: list[list[np.ndarray]],
    part: slice,
    micro_batches: int,
) -> PackedRows:
    """Returns a part of the answers to every prompt, packed."""
    return packing.pack(
        prompts,
        [group[part] for group in answers],
        row_tokens=row_tokens,
        micro_batches=micro_batches,
        shards=shards,
    )


def data_shards(config: Config, target: Target) -> int:
    """Returns the data shards of the target, each of which has a whole copy of the weights at
    work."""
    return target.devices // config.mesh.tensor


def draw(config: Config, lengths: LognormalLengths, target: Target) -> Workload:
    """Returns one step of the run's size, packed as on the target; the seed is fixed."""
    shards = data_shards(config, target)
    with devices.compiling_for(target.backend):
        slots = config.rollout.slots or memory.default_slots()
        steps = default_steps(config.rollout.max_new_tokens)
    batch = config.batch
    members = 1 + config.rollout.samples
    compared = 1 + baselines.rejected(config) if "dpo" in config.stages else 0
    prompts, responses = _draw_lengths(config, lengths, max(members, compared))
    asked = [np.ones(n, np.int32) for n in prompts]
    answers = [[np.ones(n, np.int32) for n in group] for group in responses]
    micro_batches = batch.prompts // (batch.micro_batch_prompts or batch.prompts)
    rows = partial(_packed, config.row_tokens, shards, asked, answers)
    parts = (slice(members), slice(1, members))
    pairs, samples = (rows(part, micro_batches) for part in parts)
    rollout = config.rollout
    if Sampler(rollout.temperature, rollout.top_k, rollout.top_p).truncates:
        samples = samples._replace(thresholds=samples.sampled_logprobs)

    def fewest(answers: list[list[np.ndarray]]) -> int:
        return layout.fewest_micro_batches(asked, answers, micro_batches, pairs.tokens[0].size)

    displaced = None
    if replayed := config.discriminator.replayed(rollout.samples):
        last = slice(members - replayed, members)
        displaced = rows(last, fewest([group[last] for group in answers]))
    others = any(baselines.samples(config, stage) for stage in config.stages if stage != "dpo")

    def calls(count: int) -> tuple[engine.DecodeCall, ...]:
        sampled = responses[:, 1 : 1 + count]
        limits = np.full(len(prompts), config.rollout.max_new_tokens)
        about = (shards, slots, config.longest, limits, steps, rollout.resize)
        return decoding.decode_calls(prompts, sampled, *about)

    snapshot_calls = calls(baselines.rejected(config)) if compared else ()
    return Workload(
        pairs,
        samples,
        rows(slice(0, 1), fewest([group[:1] for group in answers])),
        rows(slice(0, 1), micro_batches),
        prompts,
        responses[:, 1:members],
        layout.rectangle_padding_share(asked, [group[:members] for group in answers]),
        snapshot_calls if compared and not others else calls(config.rollout.samples),
        displaced,
        rows(slice(compared), micro_batches) if compared else None,
        snapshot_calls,
    )


def lengths_of(work: Workload) -> Lengths:
    """Returns the lengths of a planned step, with a teacher's response like the first sample."""
    return Lengths(work.prompts, np.concatenate([work.responses[:, :1], work.responses], axis=1))

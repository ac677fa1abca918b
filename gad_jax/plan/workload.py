"""The prompts and responses of one step. Only their lengths matter, and those are sampled."""

import dataclasses
from typing import NamedTuple

import numpy as np

from gad_jax.core import layout, packing
from gad_jax.distributed import devices
from gad_jax.distributed.targets import Target
from gad_jax.plan import decoding
from gad_jax.rollout import engine, memory
from gad_jax.rollout.sampling import Sampler
from gad_jax.settings.config import Config
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

    `pairs` are D's rows (teacher and student), `samples` are G's, `teacher` those of SeqKD, and
    `displaced` the samples in whose place D sees older answers; None without replay.
    """

    pairs: PackedRows
    samples: PackedRows
    teacher: PackedRows
    prompts: np.ndarray
    responses: np.ndarray
    rectangle_padding: float
    calls: tuple[engine.DecodeCall, ...]
    displaced: PackedRows | None = None

    @property
    def iterations(self) -> int:
        """Iterations of the decode loop, over all its calls."""
        return sum(call.steps for call in self.calls)

    @property
    def padding(self) -> float:
        """The share of padding in the rows of a GAD step."""
        both = (self.pairs, self.samples)
        empty = sum(rows.tokens.size * packing.padding_share(rows) for rows in both)
        return empty / sum(rows.tokens.size for rows in both)


def draw(config: Config, lengths: LognormalLengths, target: Target) -> Workload:
    """Returns one step of the run's size, packed as on the target; the seed is fixed."""
    shards = target.devices // config.mesh.tensor
    with devices.compiling_for(target.backend):
        slots = config.rollout.slots or memory.default_slots()
    rng = np.random.default_rng(0)
    batch, limit = config.batch, config.rollout.max_new_tokens

    def lognormal(mean: float, spread: float, cut: int, *shape: int) -> np.ndarray:
        # A lognormal's mean is exp(μ + spread²/2), so μ = log(mean) - spread²/2.
        drawn = rng.lognormal(np.log(mean) - spread**2 / 2, spread, shape)
        return np.clip(drawn.astype(int), 1, cut)

    prompts = lognormal(
        lengths.prompt, lengths.prompt_spread, config.data.max_prompt_tokens, batch.prompts
    )
    responses = lognormal(
        lengths.response, lengths.response_spread, limit, batch.prompts, config.rollout.samples + 1
    )
    asked = [np.ones(n, np.int32) for n in prompts]
    answers = [[np.ones(n, np.int32) for n in group] for group in responses]
    micro_batches = batch.prompts // (batch.micro_batch_prompts or batch.prompts)

    def rows(part: slice, pairs: PackedRows | None = None) -> PackedRows:
        """Packs these answers; after the pairs, into the fewest micro-batches no larger."""
        chosen, count = [group[part] for group in answers], micro_batches
        if pairs is not None:
            count = layout.fewest_micro_batches(asked, chosen, count, pairs.tokens[0].size)
        return packing.pack(
            asked, chosen, row_tokens=config.row_tokens, micro_batches=count, shards=shards
        )

    pairs, samples = rows(slice(None)), rows(slice(1, None))
    rollout = config.rollout
    if Sampler(rollout.temperature, rollout.top_k, rollout.top_p).truncates:
        samples = samples._replace(thresholds=samples.sampled_logprobs)
    replayed = config.discriminator.replayed(rollout.samples)
    return Workload(
        pairs,
        samples,
        rows(slice(0, 1), pairs),
        prompts,
        responses[:, 1:],
        layout.rectangle_padding_share(asked, answers),
        decoding.decode_calls(prompts, responses[:, 1:], shards, slots, config.longest),
        rows(slice(-replayed, None), pairs) if replayed else None,
    )

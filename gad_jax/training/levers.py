"""Which settings make a run fit in the memory there is, asked from the footprint's arithmetic.

Only settings that keep what is learnt are changed, the cheapest in time first; what a user must
decide (a smaller model, shorter responses) is said where these do not suffice.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh

from gad_jax.base.shortage import gigabytes
from gad_jax.rollout import memory
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import footprint, state
from gad_jax.training.footprint import Lengths, Need, Networks
from gad_jax.training.rewards import models

LEAST_SLOTS = 4
LEAST_CHUNK = 64


class Fit(NamedTuple):
    """Settings that were tried: what they need at most, and how they differ from those given."""

    config: Config
    need: Need
    changes: tuple[str, ...]

    @property
    def flags(self) -> str:
        """The changes as flags."""
        return " ".join(self.changes)


Change = Callable[[Config], Config | None]
"""One step towards less memory; None where there is none left."""


def fit(
    config: Config,
    networks: Networks,
    mesh: Mesh,
    lengths: Lengths,
    room: int,
    rewarding: models.Networks = models.NONE,
) -> Fit:
    """Returns the settings changed until their largest program needs at most `room` bytes on a
    device, or as far as they go. `rewarding` are the run's reward models."""
    measure = functools.partial(_measure, mesh=mesh, lengths=lengths, rewarding=rewarding)
    now, need = config, measure(config, networks)
    while need.total > room:
        for change in CHANGES.get(need.kind, UPDATE):
            tried = change(now)
            if tried is None:
                continue
            found = measure(tried, networks)
            if found.total < 0.995 * need.total:
                now, need = tried, found
                break
        else:
            break
    changed = (line.partition(":") for line in options.differences(config, now))
    return Fit(now, need, tuple(_flag(now, path) for path, _, _ in changed))


def advice(
    config: Config,
    networks: Networks,
    mesh: Mesh,
    lengths: Lengths,
    room: int,
    rewarding: models.Networks = models.NONE,
) -> str:
    """Returns which settings would fit into `room` bytes of a device, as half a sentence."""
    found = fit(config, networks, mesh, lengths, room, rewarding)
    needed = gigabytes(found.need.total)
    if found.need.total <= room:
        if not found.changes:
            return f"by estimate {found.need.program} needs {needed} and fits: free memory"
        return f"set {found.flags}, which by estimate needs {needed}"
    own_limit = found.need.kind == "evaluation" and config.evaluation.max_new_tokens
    answers = "--evaluation.max_new_tokens" if own_limit else "--rollout.max_new_tokens"
    least = f"even with {found.flags} " if found.changes else ""
    return (
        f"{least}{found.need.program} needs {needed}: use a smaller --student.path, lower "
        f"{answers} or --data.max_prompt_tokens, or use more devices for --mesh.fsdp; "
        "python -m gad_jax.plan says what fits"
    )


def _measure(
    config: Config,
    networks: Networks,
    *,
    mesh: Mesh,
    lengths: Lengths,
    rewarding: models.Networks,
) -> Need:
    both = tuple(dataclasses.replace(each, remat=config.student.remat) for each in networks)
    return footprint.largest(config, (both[0], both[1]), mesh, lengths, rewarding)


def _flag(config: Config, path: str) -> str:
    value = functools.reduce(getattr, path.split("."), config)
    return f"--{path}={value}"


def _fewer_prompts(config: Config) -> Config | None:
    batch = config.batch
    now = batch.micro_batch_prompts or batch.prompts
    smaller = [n for n in range(1, now) if batch.prompts % n == 0]
    return _with(config, "batch", micro_batch_prompts=smaller[-1]) if smaller else None


def _one_micro_batch(config: Config) -> Config | None:
    """Gradients of a single micro-batch need no second place to be summed in."""
    batch = config.batch
    several = 0 < batch.micro_batch_prompts < batch.prompts
    return _with(config, "batch", micro_batch_prompts=batch.prompts) if several else None


def _recompute(config: Config) -> Config | None:
    return None if config.student.remat == "full" else _with(config, "student", remat="full")


def _smaller_chunk(config: Config) -> Config | None:
    half = state.vocabulary_chunk(config) // 2
    return _with(config, "batch", vocabulary_chunk=half) if half >= LEAST_CHUNK else None


def _fewer_slots(config: Config) -> Config | None:
    half = (config.rollout.slots or memory.default_slots()) // 2
    return _with(config, "rollout", slots=half) if half >= LEAST_SLOTS else None


def _fewer_evaluated(config: Config) -> Config | None:
    half = config.evaluated_at_once // 2
    return _with(config, "evaluation", batch_prompts=half) if half >= LEAST_SLOTS else None


def _with(config: Config, section: str, **values: object) -> Config:
    changed = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: changed})


UPDATE: tuple[Change, ...] = (_fewer_prompts, _recompute, _smaller_chunk, _one_micro_batch)
CHANGES: dict[str, tuple[Change, ...]] = {
    "rollout": (_fewer_slots,),
    "evaluation": (_fewer_evaluated, _fewer_slots),
}
"""What lowers the memory of what decodes, by the program's name; for others it is `UPDATE`."""

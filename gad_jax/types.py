"""Every pytree that travels between modules, and the axis letters used in all annotations.

Axis glossary: B prompts, N responses per prompt, P prompt tokens, R response tokens, M packed rows,
T row length, U micro-batches, G groups of a micro-batch, S sequences of a group, L layers, D width,
F mlp width, V vocabulary, H query heads, K key/value heads, C head width.
"""

from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Bool, Float, Int, Key

Params = dict[str, Any]
"""Nested dict of float32 arrays; the paths are the rows of `sharding.PARAMETER_AXES`."""


class Segments(NamedTuple):
    """Who sees whom in a packed row: a token attends to earlier tokens of its segment and prefix.

    The responses of a group share their prompt: each has its own segment, and the prompt's segment
    as prefix. Segment 0 is padding. Any leading axes.

    Example, a prompt of two tokens and responses of two and one, padded to seven:
    own = [1 1 2 2 3 0 0], prefix = [1 1 1 1 1 0 0].
    """

    own: Int[Array, "*M T"]
    prefix: Int[Array, "*M T"]


class PackedRows(NamedTuple):
    """Sequences packed into rows of fixed length, in micro-batches of whole groups.

    `targets` holds the token that follows, `mask` is True where that token belongs to a response;
    `sequences` numbers the response that a position belongs to within the whole step, group by
    group (0 where the mask is False), and `sampled_logprobs` are the targets' under the sampler
    (0 for a teacher's). `ends` are (row, column) of each response's last token and `groups` the
    prompts of the micro-batch, both in the order of the groups. `thresholds` are `Rollout`'s.
    """

    tokens: Int[Array, "U M T"]
    positions: Int[Array, "U M T"]
    segments: Segments
    targets: Int[Array, "U M T"]
    mask: Bool[Array, "U M T"]
    sequences: Int[Array, "U M T"]
    sampled_logprobs: Float[Array, "U M T"]
    ends: Int[Array, "U G S 2"]
    groups: Int[Array, "U G"]
    thresholds: Float[Array, "U M T"] | None = None


class Rollout(NamedTuple):
    """The student's responses. Tokens after a response's end are the pad token, log-probs 0.

    `logprobs` are those of the sampled tokens under the sampling distribution. `lengths` count the
    end token. `finished` is False for a response cut at the limit. `thresholds` (of
    `sampling.thresholds`) say which tokens could be drawn; None: all.
    """

    tokens: Int[Array, "B N R"]
    logprobs: Float[Array, "B N R"]
    lengths: Int[Array, "B N"]
    finished: Bool[Array, "B N"]
    thresholds: Float[Array, "B N R"] | None = None


class Replay(NamedTuple):
    """Older answers in the discriminator's batch.

    `old` is True for the places of `PackedRows` of pairs that hold an older answer in place of a
    fresh sample, the teacher's place left out. They are among the last K of each group. `displaced`
    holds the fresh samples of those K places, of every prompt; None where no reward is paid.
    """

    old: Bool[Array, "B N"]
    displaced: PackedRows | None = None


class TrainState(NamedTuple):
    """Everything that a run needs to resume: what a checkpoint holds.

    Networks are `Params`; of one with adapters, only what is trained. `discriminator` is None in
    stages without one, `reference` is None unless the stage pays the KL term, and the moments of a
    frozen network are None. `skips` counts the stage's steps that were skipped as non-finite: all
    of them, and the consecutive ones up to now.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    generator: Params
    generator_optimizer: Any
    discriminator: Any
    discriminator_optimizer: Any
    reference: Any
    skips: Int[Array, "2"]


class Frozen(NamedTuple):
    """The bases of networks with adapters, which no step changes (`models/adapters.py`).

    A network that is trained in full has None. So has a discriminator that shares the generator's
    base.
    """

    generator: Any = None
    discriminator: Any = None


NOTHING = Frozen()
"""Of networks that are trained in full."""

Metrics = dict[str, Float[Array, ""]]

__all__ = [
    "NOTHING",
    "Frozen",
    "Metrics",
    "PackedRows",
    "Params",
    "Replay",
    "Rollout",
    "Segments",
    "TrainState",
]

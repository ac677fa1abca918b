"""Every use of a run's seed: one stream of random numbers each, none shared with another.

| stream | what it draws | made by |
|---|---|---|
| `order` | the order of the rows in a stage | `order_seed`, a seed of numpy's |
| `sampling` | the samples of a step | `sampling_key`, a key of jax |
| `head` | the weights of the discriminator's new head | `head_key`, a key of jax |
| `adapters` | the first adapters of a network | `adapters_key`, a key of jax for each network |
| `replay` | which older answers of a prompt D sees again | `replay_draws`, a generator of numpy's |
| `rejected` | which of a row's rejected answers a step takes | `rejected_choice`, numpy's |

The prompts that are held out have a seed of their own (`data.heldout_seed`). So do answers outside
of training, with the `seed` of their command. Held-out evaluations are greedy and draw nothing.
"""

import jax
import numpy as np
from jax import Array

from gad_jax.settings.config import STAGES

HEAD = 2**32 - 1
"""What the head's key is folded with: no step, because steps are int32."""

REJECTED = 2**32 - 1
"""What tells the draws of rejected answers from the orders of rows, which have a stage's number."""

ADAPTERS = {"vocabulary": 2**32 - 2, "score": 2**32 - 3}
"""The same for the adapters of a network with this head."""

REPLAY = 2**32 - 4
"""What sets the stream of replay apart from the orders, whose second number is that of a stage."""


def order_seed(seed: int, stage: str) -> int:
    """Returns the seed of the order of the rows in a stage."""
    sequence = np.random.SeedSequence([seed, STAGES.index(stage)])
    return int(sequence.generate_state(1)[0])


def sampling_key(root: Array, step: int) -> Array:
    """Returns the key of the samples of the step after `step`, or of the snapshot of a stage that
    begins there; the root is `jax.random.key(seed)`.

    It is in the training state, so that a resumed run draws what it would have drawn.
    """
    return jax.random.fold_in(root, step)


def rejected_choice(seed: int, step: int) -> np.random.Generator:
    """Returns what draws one of several rejected answers in the step after `step`."""
    return np.random.default_rng([seed, REJECTED, step])


def replay_draws(seed: int, step: int, place: int) -> np.random.Generator:
    """Returns what draws the older answers of the prompt at a place of a step's batch."""
    return np.random.default_rng([seed, REPLAY, step, place])


def head_key(seed: int) -> Array:
    """Returns the key of the weights of a new score head."""
    return jax.random.fold_in(jax.random.key(seed), HEAD)


def adapters_key(seed: int, head: str) -> Array:
    """Returns the key of the first adapters of the network with this head."""
    return jax.random.fold_in(jax.random.key(seed), ADAPTERS[head])

"""The responses of the next step, sampled before the update of this one (`--rollout.ahead`).

On one set of devices, step t of the stage gad is then: sample the responses of step t + 1, start
update t, and while the devices compute it, pay the rewards of step t + 1 and pack its rows. So
responses come from the weights before the last update, and the ratio of the policy's loss is live
(`core/losses.py`). What the host does for a step, a slow judge included, costs no time of its own.

A checkpoint has the responses that wait (`Pending.arrays`). A resumed run prepares them as the run
before did: with the same row shapes to choose from, and for the same networks.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gad_jax.core.layout import Shape
from gad_jax.settings.config import Config
from gad_jax.training.health import Side
from gad_jax.training.step_rows import StepRows
from gad_jax.types import PackedRows, Replay, Rollout

_STORED = tuple(name for name in Rollout._fields if name != "thresholds")
"""Samples from some tokens alone have thresholds, and are never ahead."""

_SIDES: tuple[Side | None, ...] = (None, "generator", "discriminator")


class Inputs(NamedTuple):
    """What a step of GAD takes of its responses; `paid` are the metrics of extra rewards."""

    pairs: PackedRows | None
    samples: PackedRows
    replay: Replay | None
    extra: jax.Array | None
    paid: dict[str, float]


class Work(NamedTuple):
    """What the host prepares for a step: its rows and, if the step is one of GAD, its inputs."""

    rows: StepRows
    inputs: Inputs | None


@dataclasses.dataclass
class Pending:
    """The responses of the next step, and what is prepared of it.

    `paused` is the network that an alarm paused when they were sampled: the next step is prepared
    as if it still were. `shapes` are the packer's from before that, and `work` is None until then.
    """

    rollout: Rollout
    paused: Side | None
    shapes: set[tuple[Shape, ...]] = dataclasses.field(default_factory=set)
    work: Work | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what a checkpoint needs to hold."""
        found = {f"ahead_{name}": np.asarray(getattr(self.rollout, name)) for name in _STORED}
        return found | {"ahead_paused": np.asarray([_SIDES.index(self.paused)], np.int32)}


def restored(arrays: Mapping[str, np.ndarray], shapes: set[tuple[Shape, ...]]) -> Pending | None:
    """Returns what `arrays` returned, not prepared yet; None where a checkpoint has no responses.

    `shapes` are the checkpoint's."""
    if "ahead_paused" not in arrays:
        return None
    found: dict[str, Any] = {name: arrays[f"ahead_{name}"] for name in _STORED}
    rollout = Rollout(**found)
    return Pending(rollout, _SIDES[int(arrays["ahead_paused"][0])], set(shapes))


def expected_bytes(config: Config) -> int:
    """Returns the bytes of the responses that wait in a checkpoint; 0 where none are ahead."""
    rollout = config.rollout
    each = 8 * rollout.max_new_tokens + 5
    return config.batch.prompts * rollout.samples * each + 4 if rollout.ahead else 0


class Watch:
    """Notes when the devices have computed some arrays, while the host does something else."""

    def __init__(self, arrays: Any) -> None:
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._wait, args=(arrays,), daemon=True)
        self._thread.start()

    def _wait(self, arrays: Any) -> None:
        with contextlib.suppress(Exception):  # whoever fetches the arrays gets it
            jax.block_until_ready(arrays)
        self._seconds = time.perf_counter()

    def seconds(self) -> float:
        """Returns when that was, on the clock of `time.perf_counter`; waits for it."""
        self._thread.join()
        return self._seconds

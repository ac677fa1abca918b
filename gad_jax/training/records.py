"""The record of a checkpoint, written by Orbax among the arrays that it is about.

It has a digest of every array, which takes as long to compute as the arrays take to read. So the
record is made in the thread that writes it, while the arrays are written.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import future

from gad_jax.distributed import processes
from gad_jax.training import digest

FILE = "record.json"

FORMAT = 2
"""Number of the layout of a record; a later version says what it can read."""

HOST = "host"
"""The item of a step with arrays that every process holds on its host, and their digests in the
record; a step without any has neither."""

LEAST_PART_BYTES = 2**20
"""Of a replicated array, what a replica writes has at least this size."""

Meta = dict[str, Any]
"""What a run stores with its arrays, as JSON."""


def items(
    step: int,
    state: Any,
    meta: Meta,
    score: float | None,
    host: dict[str, np.ndarray],
    background: bool,
) -> dict[str, Any]:
    """Returns what Orbax is to save of a step: its arrays by name, those on the host, the record.

    With `background` the digests are computed while the arrays are written, else before.
    """
    leaves = digest.plain_leaves(state)
    record = {
        "format": FORMAT,
        "step": step,
        "score": score,
        "layout": digest.layout(state),
        "meta": json.loads(json.dumps(meta)),  # as it is now
    } | ({HOST: digest.of_host(host)} if host else {})
    digests = digest.later(leaves) if background else partial(dict, digest.digests(state))

    def make() -> dict[str, Any]:
        return digest.sealed(record | {"digests": digests()})

    arrays = {"state": leaves} | ({HOST: host} if host else {})
    saved = {name: ocp.args.PyTreeSave(tree) for name, tree in arrays.items()}
    return {**saved, "meta": RecordSave(make)}


def state_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns what writes a step's arrays; where they are replicated, each replica writes a part.

    An array of which a part would have less than `LEAST_PART_BYTES` is written by one replica. To
    take a part, a device runs a program that is compiled for the array's shape, and for small
    arrays such as norms a run's first save would take several times as long.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=LEAST_PART_BYTES)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    # zstd writes 6 times slower, saves 8 % of the disk and needs up to one more copy.
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)


class RecordHandler(ocp.JsonCheckpointHandler):
    """Writes `FILE`; in a run of several processes the first one does."""

    async def async_save(
        self, directory: epath.Path, item: Any = None, args: Any = None
    ) -> list[future.Future]:
        """Starts the thread that makes and writes the record."""
        del item
        assert isinstance(args, RecordSave)
        make = args.make

        async def write() -> None:
            if processes.is_first():
                (directory / FILE).write_text(json.dumps(make()))

        return [future.CommitFutureAwaitingContractedSignals(write(), name="record")]


@ocp.args.register_with_handler(RecordHandler, for_save=True)
@dataclasses.dataclass
class RecordSave(ocp.args.CheckpointArgs):
    """Makes the record, as JSON can hold it, when it is called in the writing thread."""

    make: Callable[[], dict[str, Any]]


@ocp.args.register_with_handler(RecordHandler, for_restore=True)
@dataclasses.dataclass
class RecordRestore(ocp.args.CheckpointArgs):
    """Never used: `restoring.read_record` reads the file before Orbax is asked for anything."""

"""Reading one checkpoint back, and refusing it where anything in it has changed."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from gad_jax.base.errors import UserError, first_line
from gad_jax.distributed import processes
from gad_jax.training import digest, format_1, records, sums
from gad_jax.training.orbax_errors import quiet
from gad_jax.training.records import FORMAT, HOST, Meta

UNREADABLE = (OSError, digest.DamagedRecord)


class Restored(NamedTuple):
    """A checkpoint as it was saved; `host` is empty where a part of the state was asked for."""

    step: int
    state: Any
    meta: Meta
    host: dict[str, np.ndarray]


def try_restore(
    checkpoint: Path,
    manager: ocp.CheckpointManager,
    abstract: Callable[[Meta], Any],
    subset: bool,
    advice: str,
) -> Restored | str:
    """Returns the checkpoint, or why it cannot be read; the same kind in all processes.

    Raises UserError, which ends with `advice`, where its arrays are not those of `abstract(meta)`.
    """
    record, state, reason = None, None, ""
    host: dict[str, np.ndarray] = {}
    try:
        record = read_record(checkpoint)
        if not subset:  # a part is verified by the digests of its arrays
            sums.check(checkpoint)
    except UNREADABLE as error:
        reason = first_line(error, with_class=True)
    if processes.all_of(not reason):
        assert record is not None
        expected = abstract(record["meta"])
        _check_layout(checkpoint, record["layout"], digest.layout(expected), subset, advice)
        with quiet():
            try:
                host = {} if subset else _read_host(int(checkpoint.name), manager, record)
                state = _read_state(int(checkpoint.name), manager, expected, record)
            except Exception as error:  # Orbax and TensorStore raise errors of many types.
                reason = first_line(error, with_class=True)
            if state is None:
                gc.collect()  # What was read of it must not stay in memory next to the next one.
                time.sleep(0.1)  # TensorStore's threads end after the error is known.
        if processes.all_of(state is not None):
            return Restored(int(checkpoint.name), state, record["meta"], host)
    return reason or "another process could not read it"


def read_record(checkpoint: Path) -> Meta:
    """Returns the JSON record of a checkpoint: format, step, score, layout, digests and meta.

    Raises one of `UNREADABLE` when it is missing or damaged, UserError for another format.
    """
    record = digest.unsealed((checkpoint / "meta" / records.FILE).read_bytes())
    if record["format"] not in (1, FORMAT):
        raise UserError(
            f"checkpoint {checkpoint} has format {record['format']}, and this version reads 1 and "
            f"{FORMAT}; use the version that wrote it"
        )
    if record["step"] != int(checkpoint.name):
        raise digest.DamagedRecord(
            f"it is the checkpoint of step {record['step']}; a directory was renamed or copied"
        )
    return record


def _read_state(step: int, manager: ocp.CheckpointManager, expected: Any, record: Meta) -> Any:
    """Returns the arrays of a step in the shardings of `expected`, verified."""
    wanted = digest.named_leaves(expected)
    stored = {name: digest.stored_shape(leaf) for name, leaf in wanted.items()}
    arguments: Any = ocp.args.PyTreeRestore(
        item=stored,
        restore_args=ocp.checkpoint_utils.construct_restore_args(stored),
        partial_restore=True,
    )
    items = {"state": arguments}
    leaves = manager.restore(step, args=ocp.args.Composite(**items))["state"]
    found = (format_1 if record["format"] == 1 else digest).digests(leaves)
    wrong = [name for name in wanted if found[name] != record["digests"][name]]
    if wrong:
        raise ValueError(f"{len(wrong)} arrays changed on disk, {wrong[0]} among them")
    typed = [digest.typed_leaf(leaves[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(expected), typed)


def _read_host(step: int, manager: ocp.CheckpointManager, record: Meta) -> dict[str, np.ndarray]:
    """Returns the arrays on the host, verified; {} where the step has none."""
    if HOST not in record:
        return {}
    names = dict.fromkeys(record[HOST], 0)
    arguments: Any = ocp.args.PyTreeRestore(
        item=names,
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names},
    )
    items = {HOST: arguments}
    found: dict[str, np.ndarray] = manager.restore(step, args=ocp.args.Composite(**items))[HOST]
    changed = digest.of_host(found)
    wrong = [name for name in names if changed.get(name) != record[HOST][name]]
    if wrong:
        raise ValueError(f"{len(wrong)} arrays changed on disk, {wrong[0]} among them")
    return found


def _check_layout(
    checkpoint: Path, saved: dict[str, str], expected: dict[str, str], subset: bool, advice: str
) -> None:
    difference = digest.layout_difference(saved, expected, subset)
    if difference:
        raise UserError(
            f"checkpoint {checkpoint} does not fit these settings: {difference}; use the settings "
            f"that the run was made with{advice}"
        )

"""One atomic Orbax checkpoint per step: every array of the run's state and a JSON record, `meta`.

A step is written next to its final place and renamed when complete, so a killed save leaves nothing
that could be mistaken for a checkpoint. Orbax notices a missing or truncated file, but restores a
flipped bit silently. So the record holds a hash of every array and of itself, `sums.py` adds those
of all files, and `restoring.py` checks them. Any pytree of arrays can be saved; a run saves a
`types.TrainState`. Directories are on local or shared file systems.
"""

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from gad_jax.base import files
from gad_jax.base.errors import LostProcessError, StorageError, UserError, first_line
from gad_jax.distributed import processes
from gad_jax.training import digest, records, restoring
from gad_jax.training.completion import Completion
from gad_jax.training.orbax_errors import SaveErrors, quiet
from gad_jax.training.records import Meta
from gad_jax.training.restoring import Restored
from gad_jax.training.retention import Marks, Retention

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, in `directory`; every process of the run makes one.

    The newest `keep` are kept and, with `keep_best`, the one with the highest score (`Retention`
    says which scores compare: those with the same `ranking` in `meta`). `is_good(meta)` is whether
    no alarm was near; the last such step is kept. An older step is deleted only when the step that
    replaces it is complete.

    Where `background` is True, `save` returns while the state is hashed and written. What it was
    stays in host memory until then: as a copy, or on a CPU as the arrays themselves, which a step
    that is given their memory leaves as they are. It may be set at any time.

    `read_only` is for commands that read a run which may still be running: nothing is created,
    cleaned or renamed.

    Raises UserError when the directory cannot be used.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 2,
        keep_best: bool = True,
        background: bool = False,
        read_only: bool = False,
        is_good: Callable[[Meta], bool] = lambda _: True,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.background = background
        self._read_only = read_only
        self._other = "" if read_only else "; or choose another --run_dir"
        self._check_directory()
        self._keep, self._keep_best = keep, keep_best
        self._is_good = is_good
        self._errors = SaveErrors()
        self._pending: int | None = None
        self._bytes = 0
        self._retention = Retention(keep, keep_best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._retention,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        handlers: Any = {
            "state": records.state_handler(),
            records.HOST: ocp.PyTreeCheckpointHandler(use_compression=False),
            "meta": records.RecordHandler(),
        }
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )
        self._completion = Completion(self._manager, self._errors)
        for step in self.steps():
            with contextlib.suppress(
                UserError, *restoring.UNREADABLE
            ):  # `restore` deals with those.
                record = restoring.read_record(self.directory / str(step))
                self._mark(step, record["score"], record["meta"])

    def steps(self) -> list[int]:
        """Returns the steps that are completely written, ascending."""
        names = [entry.name for entry in self.directory.iterdir() if entry.is_dir()]
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def _agreed_steps(self) -> list[int]:
        """Returns `steps` as the first process sees them: a network file system shows late."""
        return processes.from_first(self.steps)

    def latest(self) -> int | None:
        """Returns the newest complete step, or None; the same in all processes."""
        return max(self._agreed_steps(), default=None)

    def best(self) -> int | None:
        """Returns the complete step with the highest score (of equals the newest), or None."""
        return self._retention.best(self.steps())

    def score(self, step: int) -> float | None:
        """Returns the score of a complete step."""
        return self._retention.marks.get(step, Marks()).score

    def would_be_best(self, score: float | None, meta: Meta) -> bool:
        """Returns whether a step that is saved now would be the best; without a score none is."""
        if score is None:
            return False
        self.wait()
        return self._retention.beats(score, meta, self._agreed_steps())

    def require_space(
        self, nbytes: int, others: int = 0, best: bool = True, answers: int = 0
    ) -> None:
        """Raises StorageError where the disk is too small for a run whose state has `nbytes`: the
        checkpoints that stay, the one being written, `others`, the bytes of the export, and
        `answers`, those of the snapshots that are still to come.

        `best` is False for a run without evaluations, which has no best checkpoint."""
        kept = self._retention.most - (self._keep_best and not best)
        steps = [self.directory / str(step) for step in self.steps()]
        sizes = (path.stat().st_size for step in steps for path in step.rglob("*"))
        needed = nbytes * (kept + 1) - min(sum(sizes), nbytes * kept) + others + answers
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            export = f", the export of {others / 1e9:.2f}" if others else ""
            export += f", the student's answers of {answers / 1e9:.2f}" if answers else ""
            raise StorageError(
                f"{self.directory} has {free / 1e9:.2f} GB free and this run needs "
                f"{needed / 1e9:.2f} more: {kept + 1} checkpoints of {nbytes / 1e9:.2f} GB stand "
                f"side by side (checkpoint.keep={self._keep}, the last one before an alarm, "
                f"{'the best, ' if kept > max(self._keep, 2) else ''}the one being written)"
                f"{export}; free some, lower --checkpoint.keep or choose another --run_dir"
            )

    def read_meta(self, step: int) -> Meta:
        """Returns the `meta` of a step. Raises StorageError when it is missing or damaged."""
        try:
            return restoring.read_record(self.directory / str(step))["meta"]
        except restoring.UNREADABLE as error:
            raise StorageError(
                f"the record of checkpoint {self.directory / str(step)} cannot be read: "
                f"{first_line(error, with_class=True)}"
            ) from error

    def save(
        self,
        step: int,
        state: Any,
        meta: Meta,
        score: float | None = None,
        host: dict[str, np.ndarray] | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> bool:
        """Saves the state and returns True; returns False if this step has been saved already.

        `meta` is anything that JSON can hold. `score` ranks the step (higher is better); with None
        or NaN it cannot be the best. `host` are arrays on the host, the same in every process, and
        not changed afterwards. The state may be donated as soon as this returns. `done` is called
        as soon as the checkpoint is complete, in another thread.

        Raises StorageError when the disk is short of space, or when this save or one before it
        failed; then the earlier steps are intact.
        """
        self.wait()
        if step in self._agreed_steps():
            done()
            return False
        self._errors.last = None
        leaves = (*digest.plain_leaves(state).values(), *(host or {}).values())
        self._bytes = sum(leaf.nbytes for leaf in leaves)
        self._pending = step
        if any(processes.any_of(shutil.disk_usage(self.directory).free < self._bytes)):
            raise self._failed_save(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        score = None if score is None or math.isnan(score) else float(score)
        items = records.items(step, state, meta, score, host or {}, self.background)
        self._mark(step, score, meta)
        try:
            with quiet():
                self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._failed_save(error) from error
        self._completion.begin(self.directory / str(step), done)
        if not self.background:
            self.wait()
        return True

    def rescore(self, step: int, score: float | None, about: Meta | None = None) -> None:
        """Gives a complete step another score, in its record too, and adds to its `meta`.

        A step that is not the best any more is removed."""
        self.wait()
        score = None if score is None or math.isnan(score) else float(score)
        record = restoring.read_record(self.directory / str(step))
        meta = record["meta"] | (about or {})
        changed = record | {"score": score, "meta": meta}
        processes.all_of(True)  # have read it
        if processes.is_first() and changed != record:
            path = self.directory / str(step) / "meta" / records.FILE
            files.write_atomic(path, json.dumps(digest.sealed(changed)))
        good = self._retention.marks.get(step, Marks()).good
        self._retention.mark(step, score, meta, good)
        self._remove_surplus()

    def wait(self) -> None:
        """Returns when no save is in progress. Raises StorageError if the last one failed."""
        if self._pending is None:
            return
        try:
            self._completion.wait()
        except Exception as error:
            raise self._failed_save(error) from error
        self._pending = None

    def check(self) -> None:
        """Raises StorageError if the last save is known to have failed; does not wait for it."""
        if self._completion.ended():
            self.wait()

    def settle(self, error: Exception) -> None:
        """Returns when no save is in progress, in a process that this error ends: it leaves without
        waiting for threads. A save that lost a process has no end to wait for. One that failed is
        said here: the error that is raised is the other one."""
        if processes.lost_peer(error) is None:
            try:
                self.wait()
            except StorageError as failed:
                logger.warning("%s", failed)

    def close(self) -> None:
        """Waits for the last save and lets go of Orbax's threads."""
        self.wait()
        self._manager.close()

    def restore(
        self, abstract: Callable[[Meta], Any], step: int | None = None, *, subset: bool = False
    ) -> Restored:
        """Returns the newest checkpoint that is intact, or the given step.

        `abstract(meta)` returns what is expected, since that may depend on the stage in `meta`: a
        pytree of `jax.ShapeDtypeStruct` with shardings, on any devices. With `subset` it may leave
        out leaves, which are then not read: `lambda meta: {"generator": …}`.

        A checkpoint that is damaged is passed over for the one before it, and renamed to
        'N.corrupt-TIME' once an intact one is found.

        Raises UserError when an intact checkpoint does not have the expected leaves, and
        StorageError when none is intact, naming each with its reason; none is renamed then.
        """
        candidates = [known for known in self._agreed_steps()[::-1] if step in (None, known)]
        if not candidates:
            wanted = "to restore" if step is None else f"of step {step}; it has {self.steps()}"
            raise UserError(f"{self.directory} has no checkpoint {wanted}")
        damaged: dict[int, str] = {}
        for candidate in candidates:
            outcome = restoring.try_restore(
                self.directory / str(candidate), self._manager, abstract, subset, self._other
            )
            if isinstance(outcome, Restored):
                self._quarantine(damaged)
                if step is None and not self._read_only:
                    self._remove_surplus()
                return outcome
            damaged[candidate] = outcome
            logger.warning("checkpoint %d is damaged (%s)", candidate, outcome)
        reasons = "; ".join(f"step {number}: {reason}" for number, reason in damaged.items())
        raise StorageError(
            f"no checkpoint in {self.directory} could be restored; nothing was deleted: {reasons}"
        )

    def _quarantine(self, damaged: dict[int, str]) -> None:
        """Renames the damaged steps, so that they are neither restored nor in the way."""
        if self._read_only or not damaged:
            return
        suffix = time.strftime("corrupt-%Y%m%dT%H%M%S", time.gmtime())
        for step, reason in damaged.items():
            self._retention.marks.pop(step, None)
            target = self.directory / f"{step}.{suffix}"
            if processes.is_first():
                (self.directory / str(step)).rename(target)
            logger.warning("checkpoint %d was renamed to %s: %s", step, target.name, reason)
        processes.all_of(True)
        self._manager.reload()

    def _remove_surplus(self) -> None:
        """Removes older steps that a process was removing, or about to, when it was killed."""
        steps = self._agreed_steps()
        surplus = [step for step in steps if step not in self._retention.kept(steps)]
        if not surplus:
            return
        if processes.is_first():
            for step in surplus:
                shutil.rmtree(self.directory / str(step), ignore_errors=True)
        processes.all_of(True)
        self._manager.reload()

    def _mark(self, step: int, score: float | None, meta: Any) -> None:
        meta = meta if isinstance(meta, dict) else {}
        self._retention.mark(step, score, meta, self._is_good(meta))

    def _check_directory(self) -> None:
        if not self._read_only:
            files.make_writable(self.directory, "the checkpoint directory")
            return
        try:
            os.listdir(self.directory)
        except OSError as error:
            raise UserError(
                f"the checkpoint directory {self.directory} cannot be read "
                f"({error.strerror}){self._other or '; is it that of a run?'}"
            ) from error

    def _failed_save(self, error: Exception) -> StorageError | LostProcessError:
        """Forgets the save that failed and returns the error to raise."""
        step, self._pending = self._pending, None
        self._retention.marks.pop(step or 0, None)
        for cause in filter(None, (error, error.__cause__, error.__context__)):
            if (lost := processes.lost_peer(cause)) is not None:
                return LostProcessError(lost)
        free = shutil.disk_usage(self.directory).free
        return StorageError(
            f"checkpoint {self.directory / str(step)} could not be written "
            f"({first_line(error, with_class=True)}); it needs {self._bytes / 1e9:.2f} GB and "
            f"{free / 1e9:.2f} GB are free; "
            f"complete checkpoints: {self.steps() or 'none'}"
        )

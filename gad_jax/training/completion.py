"""What completes a checkpoint that Orbax has begun to write, while the next steps run."""

import concurrent.futures
import contextlib
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from gad_jax.distributed import processes
from gad_jax.training import sums
from gad_jax.training.orbax_errors import SaveErrors, quiet


class Completion:
    """Waits until Orbax has written and renamed a checkpoint, then adds its files' checksums.

    One checkpoint at a time. `errors` are those that Orbax has logged.
    """

    def __init__(self, manager: ocp.CheckpointManager, errors: SaveErrors) -> None:
        self._manager, self._errors = manager, errors
        self._threads = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._task: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._task.set_result(None)

    def begin(self, checkpoint: Path, done: Callable[[], None]) -> None:
        """Starts to wait for a checkpoint that Orbax writes; calls `done` when it is complete."""
        self._task = self._threads.submit(self._complete, checkpoint, done)

    def ended(self, seconds: float | None = 0.0) -> bool:
        """Returns whether the checkpoint is complete, or has failed, at most so much later; with
        None, once it has ended."""
        return not concurrent.futures.wait([self._task], seconds).not_done

    def wait(self) -> None:
        """Returns when the checkpoint is complete. Raises what made it fail."""
        try:
            self._task.result()
        except Exception:
            # Orbax raises its error once in every thread that waits: here, not in the next save.
            # In a run of several processes that would wait for the others, and there is no next.
            if jax.process_count() == 1:
                with quiet(), contextlib.suppress(Exception):
                    self._manager.wait_until_finished()
            raise

    def _complete(self, checkpoint: Path, done: Callable[[], None]) -> None:
        with quiet():
            if jax.process_count() > 1:
                self._errors.wait(self._manager.is_saving_in_progress)
            self._manager.wait_until_finished()
        if processes.is_first():
            sums.write(checkpoint)
        done()

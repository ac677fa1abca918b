"""A run's evaluations on held-out prompts: one file each in RUN/evaluations."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from gad_jax.base import files
from gad_jax.data.chat import Chat
from gad_jax.data.pipeline import Prepared
from gad_jax.distributed import processes
from gad_jax.metrics import heldout
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.answering import Responder
from gad_jax.settings.decoding import Decoding
from gad_jax.settings.operation import Evaluation
from gad_jax.training.tracker import Tracker
from gad_jax.types import Params


class Evaluations:
    """Greedy answers of the student to the run's held-out prompts, each evaluation made once.

    `held_out` is None for a run without held-out rows: then there are no evaluations.
    """

    def __init__(
        self,
        directory: Path,
        held_out: Prepared | None,
        chat: Chat,
        mesh: Mesh,
        network: DecoderConfig,
        options: Evaluation,
        max_new_tokens: int,
        tracker: Tracker,
    ) -> None:
        self.directory, self.held_out, self.options = directory, held_out, options
        self.chat, self.mesh, self.network, self.tracker = chat, mesh, network, tracker
        self.max_new_tokens = options.max_new_tokens or max_new_tokens

    def make(
        self, label: str, step: int, generator: Params, keep_going: Callable[[], bool]
    ) -> heldout.HeldoutResult | None:
        """Returns the evaluation with this label; a stored one is read again.

        Returns None without held-out rows, and where `keep_going` said no between two batches.
        """
        if self.held_out is None:
            return None
        path = self._path(label)
        stored = processes.from_first(lambda: path.read_text("utf-8") if path.exists() else None)
        if stored is not None:
            return heldout.parse(stored)
        prompts = min(self.options.prompts or len(self.held_out), len(self.held_out))
        with self.tracker.busy(f"evaluating {label}: {prompts} held-out prompts"):
            decoding = Decoding(temperature=0.0, max_new_tokens=self.max_new_tokens)
            responder = Responder(self.network, generator, self.chat, self.mesh, decoding)
            result = heldout.evaluate(
                responder,
                self.held_out,
                label=label,
                step=step,
                prompts=prompts,
                batch_prompts=self.options.batch_prompts,
                keep_going=keep_going,
            )
        if result is not None and processes.is_first():
            self.tracker.evaluation(result, self.options.examples)
            path.parent.mkdir(parents=True, exist_ok=True)
            # The file last: it says that the evaluation is done.
            files.write_atomic(path, result.to_json())
        return result

    def compare(self, labels: Sequence[str]) -> None:
        """Shows the evaluations with these labels next to each other, those that were made."""
        if not processes.is_first():
            return
        paths = [path for label in labels if (path := self._path(label)).exists()]
        results = [heldout.read(path) for path in paths]
        self.tracker.comparison(results, self.options.examples)

    def _path(self, label: str) -> Path:
        return self.directory / f"{label.replace(' ', '-')}.json"

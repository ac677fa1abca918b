"""A run's evaluations on held-out prompts: one file each in RUN/evaluations."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh

from gad_jax.base import files
from gad_jax.base.errors import UserError, first_line
from gad_jax.data.chat import Chat
from gad_jax.data.pipeline import Prepared
from gad_jax.distributed import processes
from gad_jax.metrics import heldout
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.answering import Responder
from gad_jax.settings.config import Config
from gad_jax.settings.decoding import Decoding
from gad_jax.training.tracker import Tracker
from gad_jax.types import Params


def count(config: Config, rows: int) -> int:
    """Returns how many of so many held-out prompts an evaluation answers."""
    return min(config.evaluation.prompts or rows, rows)


def measured(config: Config, held_out: Prepared | None) -> str:
    """Returns a text that is the same for evaluations whose scores compare."""
    rows = held_out.fingerprint if held_out else ""
    prompts = count(config, len(held_out) if held_out else 0)
    return f"{prompts} of {rows}, up to {config.evaluation_tokens} tokens"


class Evaluations:
    """Greedy answers of the student to the run's held-out prompts, each evaluation made once.

    `held_out` is None for a run without held-out rows: then there are no evaluations.
    """

    def __init__(
        self,
        config: Config,
        held_out: Prepared | None,
        chat: Chat,
        mesh: Mesh,
        network: DecoderConfig,
        tracker: Tracker,
    ) -> None:
        self.config, self.options, self.held_out = config, config.evaluation, held_out
        self.directory = Path(config.run_dir) / "evaluations"
        self.chat, self.mesh, self.tracker = chat, mesh, tracker
        # what is evaluated is what is trained and exported, not a rounded copy
        self.network = network.unrounded

    def make(
        self, label: str, step: int, generator: Params, keep_going: Callable[[], bool]
    ) -> heldout.HeldoutResult | None:
        """Returns the evaluation with this label at a step; a stored one is read again.

        One that is damaged is moved away and made anew.

        Returns None without held-out rows, and where `keep_going` said no between two batches.
        """
        if self.held_out is None:
            return None
        path = self._path(label)
        stored = processes.from_first(lambda: self._stored(path, step))
        if stored is not None:
            result = heldout.parse(stored)
            self.tracker.recall(result, self.options.examples)
            return result
        prompts = count(self.config, len(self.held_out))
        with self.tracker.busy(f"evaluating {label}: {prompts} held-out prompts"):
            result = heldout.evaluate(
                self._responder(generator),
                self.held_out,
                label=label,
                step=step,
                prompts=prompts,
                batch_prompts=self.options.batch_prompts,
                keep_going=keep_going,
            )
        if result is not None and processes.is_first():
            self.tracker.evaluation(result, self.options.examples, self._before(result))
            path.parent.mkdir(parents=True, exist_ok=True)
            # The file last: it says that the evaluation is done.
            files.write_atomic(path, result.to_json())
        return result

    def compare(self, labels: Sequence[str]) -> None:
        """Shows the evaluations with these labels next to each other, those that were made."""
        if processes.is_first():
            results = self._of_same_rows(self._readable([self._path(label) for label in labels]))
            if len({len(result.examples) for result in results}) > 1:  # the setting was changed
                results = [
                    dataclasses.replace(r, label=f"{r.label} ({len(r.examples)} prompts)")
                    for r in results
                ]
            self.tracker.comparison(results, self.options.examples)

    def recall(self, step: int, ends: Mapping[str, int]) -> None:
        """Writes the evaluations up to a step, which the run resumes after, to TensorBoard.

        `ends` are the steps of evaluations by label. One of another step, which was the last of its
        stage before the stage's length was changed, becomes the evaluation of that step.
        """
        if not processes.is_first() or not step:
            return
        results = self._readable(sorted(self.directory.glob("*.json")))
        for result in sorted(results, key=lambda result: result.step):
            if result.step != ends.get(result.label, result.step):
                self._path(result.label).unlink()
                result = dataclasses.replace(result, label=f"step {result.step}")
                files.write_atomic(self._path(result.label), result.to_json())
            if result.step <= step:
                self.tracker.recall(result, self.options.examples)

    def _responder(self, generator: Params) -> Responder:
        """Returns the student, which answers within the limits of the run's rollouts."""
        rollout = self.config.rollout
        return Responder(
            self.network,
            generator,
            self.chat,
            self.mesh,
            Decoding(temperature=0.0, max_new_tokens=self.config.evaluation_tokens),
            slots=rollout.slots,
            longest=self.config.longest_evaluated,
            resizes=rollout.resize,
        )

    def _before(self, result: heldout.HeldoutResult) -> heldout.HeldoutResult | None:
        """Returns the evaluation before training, if it is another one, of the same prompts."""
        path = self._path(heldout.FIRST)
        for found in self._readable([path] if result.label != heldout.FIRST else []):
            if [one["prompt"] for one in found.examples] == [
                one["prompt"] for one in result.examples
            ]:
                return found
        return None

    def _of_same_rows(self, results: list[heldout.HeldoutResult]) -> list[heldout.HeldoutResult]:
        """Returns the evaluations of the rows that the last one has, or of the first of them."""
        kept = []
        for result in results:
            pairs = zip(result.examples, results[-1].examples, strict=False)
            if all(one["prompt"] == other["prompt"] for one, other in pairs):
                kept.append(result)
            else:
                self.tracker.notice(f"left out of the comparison: {result.label}, of other rows")
        return kept

    def _readable(self, paths: Sequence[Path]) -> list[heldout.HeldoutResult]:
        """Returns the evaluations in these files; says which are left out as damaged."""
        results = []
        for path in paths:
            try:
                results += [heldout.read(path)] if path.exists() else []
            except UserError as error:
                self.tracker.notice(f"left out: {error}")
        return results

    def _stored(self, path: Path, step: int) -> str | None:
        """Returns the text of the evaluation that is stored for a step, if there is one."""
        if not path.exists():
            return None
        try:
            text = path.read_text(encoding="utf-8")
            found = heldout.parse(text)
            whole = found.examples and "evaluation/length_ratio" in found.metrics
            if found.step == step and whole:
                return text
            reason = "parts are missing" if found.step == step else "it is of another step"
        except (OSError, ValueError) as error:
            reason = first_line(error)
        moved = f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
        path.rename(path.with_name(moved))
        self.tracker.notice(f"{path} is made anew ({reason}); as it was, it is {moved}")
        return None

    def _path(self, label: str) -> Path:
        return self.directory / f"{label.replace(' ', '-')}.json"

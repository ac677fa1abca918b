"""Where a run's numbers go: metrics.jsonl, TensorBoard, the console and experiment trackers.

metrics.jsonl is the source of truth, with one object per step; the rest can be derived from it.
Metrics are named part/quantity, such as generator/loss, and are floats on the host.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from gad_jax.base import verbosity
from gad_jax.base.console import Display
from gad_jax.base.jsonl import Appender, amend_last_row, json_numbers
from gad_jax.training import heldout_tables, metric_rows
from gad_jax.training.events import Events
from gad_jax.training.heldout_tables import Evaluation
from gad_jax.training.trackers.sending import Trackers
from gad_jax.training.trackers.service import Outcome, sample_file


class Tracker:
    """The writers of one run, in `run_dir`: metrics.jsonl, tensorboard/, samples/ and the console.

    A killed process loses no logged row. In a run of several processes only the first writes: in
    the others `enabled` is False and nothing happens.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        console: Console | None = None,
        *,
        enabled: bool = True,
        trackers: Trackers | None = None,
    ) -> None:
        self._run_dir = Path(run_dir)
        self._trackers = trackers
        self._enabled = enabled
        if enabled:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._path = self._run_dir / "metrics.jsonl"
            self._rows = Appender(self._path, sync=False)
            self._events = Events(self._run_dir / "tensorboard")
            self._display = Display(console)

    def start(self, step: int, total_steps: int) -> None:
        """Sets the step that the run begins after, 0 or that of the checkpoint it resumes from.

        Rows that an earlier process logged after that step are dropped: those steps run again.
        TensorBoard's files are written anew from the rows that are left.
        """
        if not self._enabled:
            return
        written_at = self._path.stat().st_mtime
        self._rows.close()
        rows, notice = metric_rows.resume(self._path, step)
        self._rows = Appender(self._path, sync=False)
        self._events.rebuild(rows, written_at)
        self._display.start(step, total_steps)
        if notice:
            self._display.notice(notice)
        if self._trackers:
            self._trackers.start(rows)
        self._say()

    def log(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step. A number that is not finite is null in metrics.jsonl."""
        if not self._enabled:
            return
        with naming(self._path):
            self._rows.append([{"step": step, "stage": stage} | json_numbers(metrics)])
        self._scalars(step, metrics, row=True)
        self._display.step(step, stage, metrics)
        self._say()

    def amend(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds metrics to the row of the last step after it was logged."""
        if not self._enabled:
            return
        self._rows.close()
        amend_last_row(self._path, step, metrics)
        self._rows = Appender(self._path, sync=False)
        self._scalars(step, metrics)

    def evaluation(
        self, result: Evaluation, examples: int, before: Evaluation | None = None
    ) -> None:
        """Shows an evaluation, and writes some of its answers as `text` does. With --verbose these
        are shown too; else `comparison` shows them once, at the end of the run.

        `before` is the one before training, if changes against it are to be shown."""
        if not self._enabled:
            return
        if result.step == 0:  # No step will log the numbers of the student as it was.
            self._scalars(0, result.metrics)
        if not verbosity.quiet():
            rows = heldout_tables.one(result, before)
            self.table(f"{result.label}, step {result.step}", rows)
        self._examples(result.step, result.label, [result], examples, shown=verbosity.verbose())

    def recall(self, result: Evaluation, examples: int) -> None:
        """Writes what an evaluation that was made before has in TensorBoard and samples/."""
        if not self._enabled:
            return
        if result.step == 0:
            self._scalars(0, result.metrics)
        self._examples(result.step, result.label, [result], examples, shown=False)

    def comparison(self, results: Sequence[Evaluation], examples: int) -> None:
        """Shows evaluations of a run in one table, and their answers to the same prompts."""
        if self._enabled and results:
            self.table("held-out prompts", heldout_tables.values(results))
            for title, rows in heldout_tables.changes(results):
                self.table(title, rows)
            self._examples(results[-1].step, "comparison", results, examples, shown=True)

    def table(self, title: str, rows: Mapping[str, Mapping[str, float | str]]) -> None:
        """Shows a table: rows by name, each with its quantities by name."""
        if self._enabled:
            self._display.table(title, rows)

    def text(self, step: int, name: str, markdown: str) -> None:
        """Writes a text to TensorBoard and to samples/STEP-NAME.md."""
        if not self._enabled:
            return
        directory = self._run_dir / "samples"
        directory.mkdir(exist_ok=True)
        path = directory / sample_file(step, name)
        with naming(path):
            path.write_text(markdown, encoding="utf-8", errors="backslashreplace")
        with naming(self._events.directory):
            self._events.text(step, name, path.read_text(encoding="utf-8"))
        if self._trackers:
            self._trackers.text(step, name, path.read_text(encoding="utf-8"))

    def notice(self, sentence: str) -> None:
        """Shows an important sentence."""
        if self._enabled:
            self._display.notice(sentence)

    def news(self, sentence: str) -> None:
        """Shows a sentence that is no warning."""
        if not verbosity.quiet():
            self.notice(sentence)

    def busy(self, label: str) -> contextlib.AbstractContextManager[None]:
        """Shows what the run does inside the `with`, when that is not a step."""
        return self._display.busy(label) if self._enabled else contextlib.nullcontext()

    def compiling(self) -> None:
        """Shows that XLA compiles, which the next steps need not."""
        if self._enabled:
            self._display.compiling()

    def close(self, outcome: Outcome = "finished") -> None:
        """Closes the files, tells trackers how the run ended, and removes the progress bar."""
        if self._enabled:
            self.leave(outcome)
            self._display.close()
            self._rows.close()
            with naming(self._events.directory):
                self._events.close()

    def leave(self, outcome: Outcome) -> None:
        """Tells trackers how the run ended; the first word counts."""
        if self._trackers:
            self._trackers.close(outcome)
        self._say()

    def _scalars(self, step: int, metrics: Mapping[str, float], *, row: bool = False) -> None:
        with naming(self._events.directory):
            self._events.scalars(step, metrics)
        if self._trackers:
            (self._trackers.row if row else self._trackers.later)(step, metrics)

    def _say(self) -> None:
        """Shows what the trackers have to say, between the lines of the steps."""
        for sentence in self._trackers.said() if self._trackers else ():
            self._display.notice(sentence)

    def _examples(
        self, step: int, name: str, results: Sequence[Evaluation], count: int, shown: bool
    ) -> None:
        """Writes the first prompts with the teacher's answer and one per result; `shown` is whether
        the console shows them too. Results may have different numbers of prompts."""
        documents = []
        fewest = min(len(result.examples) for result in results)
        for number, example in enumerate(results[-1].examples[: min(count, fewest)]):
            texts = {"teacher": example["teacher"]}
            texts |= {result.label: result.examples[number]["student"] for result in results}
            if shown and not verbosity.quiet():
                self._display.side_by_side(example["prompt"], texts)
            documents += [_markdown(name, text) for name, text in texts.items()]
            documents.insert(-len(texts), _markdown("prompt", example["prompt"]))
        if documents:
            self.text(step, name, "\n".join(documents))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file of an error that does not: writing to a file that is open raises such ones."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _markdown(name: str, text: str) -> str:
    """Returns a text under its name, indented so that Markdown in it is shown verbatim."""
    return f"**{name}**\n\n" + "".join(f"    {line}\n" for line in text.splitlines())

"""Where a run's numbers go: metrics.jsonl, TensorBoard and the console.

metrics.jsonl is the source of truth, with one object per step; the rest can be derived from it.
Metrics are named part/quantity, such as generator/loss, and are floats on the host.
"""

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console

from gad_jax.base.console import Display
from gad_jax.base.jsonl import Appender, amend_last_row, json_numbers, truncate_rows


@runtime_checkable
class Evaluation(Protocol):
    """What is shown of an evaluation; `metrics.heldout.HeldoutResult` is one.

    An example has the texts 'prompt', 'teacher' and 'student'; all evaluations of a run have the
    same prompts.
    """

    @property
    def label(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def examples(self) -> Sequence[Mapping[str, Any]]: ...


class Tracker:
    """The writers of one run, in `run_dir`: metrics.jsonl, tensorboard/, samples/ and the console.

    A killed process loses no logged row, and at most the last second of TensorBoard's events. In a
    run of several processes only the first writes: in the others `enabled` is False and nothing
    happens.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        console: Console | None = None,
        *,
        enabled: bool = True,
    ) -> None:
        self._run_dir = Path(run_dir)
        self._enabled = enabled
        self._next_step = 0
        self._tensorboard: Any = None  # a SummaryWriter, made when first needed
        if enabled:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._rows = Appender(self._run_dir / "metrics.jsonl", sync=False)
            self._display = Display(console)

    def start(self, step: int, total_steps: int) -> None:
        """Sets the step that the run begins after, 0 or that of the checkpoint it resumes from.

        Rows that an earlier process logged after that step are dropped: those steps run again.
        """
        if self._enabled:
            truncate_rows(self._run_dir / "metrics.jsonl", step)
            self._next_step = step + 1
            self._display.start(step, total_steps)

    def log(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step. A number that is not finite is null in metrics.jsonl."""
        if not self._enabled:
            return
        self._rows.append([{"step": step, "stage": stage} | json_numbers(metrics)])
        self._scalars(step, metrics)
        self._display.step(step, stage, metrics)

    def amend(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds metrics to the row of the last step after it was logged."""
        if not self._enabled:
            return
        self._rows.close()
        amend_last_row(self._run_dir / "metrics.jsonl", step, metrics)
        self._rows = Appender(self._run_dir / "metrics.jsonl", sync=False)
        self._scalars(step, metrics)

    def evaluation(self, result: Evaluation, examples: int) -> None:
        """Shows an evaluation and some of its answers, and writes those as `text` does."""
        if not self._enabled:
            return
        if result.step == 0:  # No step will log the numbers of the student as it was.
            self._scalars(0, result.metrics)
        self.table(f"{result.label}, step {result.step}", {result.label: _columns(result)})
        self._examples(result.step, result.label, [result], examples)

    def comparison(self, results: Sequence[Evaluation], examples: int) -> None:
        """Shows evaluations of a run in one table, and their answers to the same prompts."""
        if self._enabled and results:
            rows = {result.label: _columns(result) for result in results}
            self.table("held-out prompts", rows)
            self._examples(results[-1].step, "comparison", results, examples)

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
        path = directory / f"{step:06d}-{re.sub('[^a-z0-9]+', '-', name.lower())}.md"
        path.write_text(markdown, encoding="utf-8", errors="backslashreplace")
        self._writer.add_text(name, path.read_text(encoding="utf-8"), step)
        self._writer.flush()

    def notice(self, sentence: str) -> None:
        """Shows an important sentence."""
        if self._enabled:
            self._display.notice(sentence)

    def busy(self, label: str) -> contextlib.AbstractContextManager[None]:
        """Shows what the run does inside the `with`, when that is not a step."""
        return self._display.busy(label) if self._enabled else contextlib.nullcontext()

    def compiling(self) -> None:
        """Shows that XLA compiles, which the next steps need not."""
        if self._enabled:
            self._display.compiling()

    def close(self) -> None:
        """Closes the files and removes the progress bar."""
        if self._enabled:
            self._display.close()
            self._rows.close()
            if self._tensorboard is not None:
                self._tensorboard.close()

    def _scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, float(value), step)
        self._writer.flush()

    def _examples(self, step: int, name: str, results: Sequence[Evaluation], count: int) -> None:
        """Shows and writes the first prompts with the teacher's answer and one per result."""
        documents = []
        for number, example in enumerate(results[-1].examples[:count]):
            texts = {"teacher": example["teacher"]}
            texts |= {result.label: result.examples[number]["student"] for result in results}
            self._display.side_by_side(example["prompt"], texts)
            documents += [_markdown(name, text) for name, text in texts.items()]
            documents.insert(-len(texts), _markdown("prompt", example["prompt"]))
        if documents:
            self.text(step, name, "\n".join(documents))

    @property
    def _writer(self) -> Any:
        if self._tensorboard is None:
            from tensorboardX import SummaryWriter  # Imports protobuf, which takes a while.

            self._tensorboard = SummaryWriter(
                str(self._run_dir / "tensorboard"),
                purge_step=self._next_step,
                flush_secs=1,
                # Names have seconds only, and a file of the same name would be overwritten.
                filename_suffix=f".{os.getpid()}.{self._next_step}",
            )
        return self._tensorboard


COLUMNS = {
    "evaluation/rouge_l": "ROUGE-L",
    "evaluation/length": "tokens",
    "evaluation/length_ratio": "× teacher",
    "evaluation/cut_share": "cut",
}


def _columns(result: Evaluation) -> dict[str, float | str]:
    return {COLUMNS.get(name, name): value for name, value in result.metrics.items()}


def _markdown(name: str, text: str) -> str:
    """Returns a text under its name, indented so that Markdown in it is shown verbatim."""
    return f"**{name}**\n\n" + "".join(f"    {line}\n" for line in text.splitlines())

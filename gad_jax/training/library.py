"""gad_jax from Python: load a student, let it answer, score answers, train step by step.

For notebooks and programs of one process. Each object sets the device mesh itself, for as long as a
call takes. Settings are the flags of the commands. Errors that a user can mend are
`gad_jax.base.errors.UserError`, one sentence each.

    import gad_jax

    print(gad_jax.Student("smollm2-135m-instruct").generate(["Why is the sky blue?"]))
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gad_jax import __version__
from gad_jax.base import exits, files
from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.chat import Chat
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.metrics.scoring import Scorer
from gad_jax.models import adapters
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import register as register_family
from gad_jax.rollout.answering import Answer, Responder
from gad_jax.settings import options
from gad_jax.settings.config import Config, default_file
from gad_jax.settings.decoding import Decoding
from gad_jax.settings.fields import FieldError
from gad_jax.training import finishing, loading, pushing, setup
from gad_jax.training.trainer import Trainer
from gad_jax.types import Params

__all__ = ["Discriminator", "Run", "Student", "register_family", "write_rows"]

Prompt = str | Sequence[Mapping[str, str]]
"""What is asked: a text, or the messages of a conversation, with 'role' and 'content'."""


class Student:
    """A network that answers prompts.

    `model` is a name as in `--student.path`, a run directory, or one of its steps. Raises UserError
    for a name that is none of these.
    """

    def __init__(self, model: str | os.PathLike[str], template: str = "auto") -> None:
        mesh = _mesh()
        with jax.set_mesh(mesh):
            network = loading.load_student(os.fspath(model), mesh)
        chat = network.load_chat(template)
        self._set(network.config, network.params, chat, mesh, network.origin)

    def _set(
        self,
        config: DecoderConfig,
        params: Params,
        chat: Chat,
        mesh: jax.sharding.Mesh,
        origin: str,
    ) -> None:
        self.config, self.params, self.chat, self.mesh = config, params, chat, mesh
        self.origin = origin
        self._decoding: Decoding | None = None
        self._responder: Responder | None = None

    def generate(self, prompts: Sequence[Prompt], **decoding: Any) -> list[list[str]]:
        """Returns the texts of the answers to each prompt; see `answers`."""
        return [[answer.text for answer in group] for group in self.answers(prompts, **decoding)]

    def answers(self, prompts: Sequence[Prompt], **decoding: Any) -> list[list[Answer]]:
        """Returns the answers to each prompt, with their lengths and thoughts.

        `decoding` are fields of `gad_jax.settings.decoding.Decoding`, such as samples,
        temperature, max_new_tokens and seed. The decode copy of the weights is kept for the next
        call with the same ones. Raises UserError for a prompt that is too long, or for a number
        that is out of range.
        """
        try:
            wanted = Decoding(**decoding)
        except FieldError as error:
            raise UserError(str(error)) from error
        with jax.set_mesh(self.mesh):
            if self._responder is None or wanted != self._decoding:
                self._responder = None  # the old decode copy goes before the new one comes
                self._responder = Responder(self.config, self.params, self.chat, self.mesh, wanted)
                self._decoding = wanted
            return self._responder.ask(_conversations(prompts))


class Discriminator:
    """The discriminator of a run: how much a response looks like the teacher's.

    `run` is a run directory or one of its steps. Raises UserError where it has none.
    """

    def __init__(self, run: str | os.PathLike[str], template: str = "auto") -> None:
        self.mesh = _mesh()
        with jax.set_mesh(self.mesh):
            network = loading.load_from_run(os.fspath(run), "discriminator", self.mesh)
        self.config, self.params, self.origin = network.config, network.params, network.origin
        self.chat = network.load_chat(template)
        self._scorer = Scorer(self.config, self.params, self.chat, self.mesh)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Returns the score D(x, y) of each response to the prompt in the same place.

        A higher score is more like the teacher. It is NaN where both together are too long. All
        responses count as complete.
        """
        if isinstance(responses, str) or len(prompts) != len(responses):
            count = "a text" if isinstance(responses, str) else f"{len(responses)} responses"
            raise UserError(
                f"score was given {len(prompts)} prompts and {count}; give two lists of the same "
                "length"
            )
        with jax.set_mesh(self.mesh):
            whole = [True] * len(responses)
            return self._scorer(_conversations(prompts), responses, whole)


class Run:
    """A training run, stepped from Python: the run of `python -m gad_jax.train` with these flags.

    Its directory is the command's too, so either may resume what the other began. Iterating takes
    one step at a time and yields its metrics, with 'step' and 'stage'. Evaluations, alarms and
    checkpoints come when the settings say so. After the last step come the table of the evaluations
    and the report. Use it in a `with`, or call `close`: until then no other process may take up the
    run.

        with Run("--config=tiny") as run:
            for metrics in run:
                print(metrics["step"], metrics["generator/loss"])

    After an exception in a step, close the run and make it again: it resumes from its newest
    checkpoint. `trainer` has the parts of the run. Raises UserError as the command does.
    """

    def __init__(self, *flags: str) -> None:
        self.config: Config = options.read(
            Config,
            flags,
            program="Run",
            description="",
            config_default=default_file(flags),
            shows_progress=True,
        )
        mesh = self.config.mesh
        self._held = contextlib.ExitStack()
        self._stop = exits.StopRequest()  # not entered: signals stay as they are
        try:
            self._held.enter_context(files.lock_run(self.config.run_dir))
            setup.claim(self.config)
            self.mesh = _mesh(mesh.replica, mesh.fsdp, mesh.tensor)
            with self._active():
                self.trainer: Trainer = setup.build(self.config, self.mesh)
            self._reported = self.trainer.step
            self._held.callback(self._report_the_rest)
            self._held.callback(self.trainer.close)
        except BaseException:
            self._held.close()
            raise
        self._steps = self.trainer.steps(self._stop)
        self._failed = self._ended = self._closed = False

    @contextlib.contextmanager
    def _active(self) -> Iterator[None]:
        """The mesh is set, and no watchdog stays behind that would end an idle notebook."""
        try:
            with jax.set_mesh(self.mesh):
                yield
        finally:
            exits.watchdog(0.0)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        """Takes the next step; returns its metrics, with 'step' and 'stage'."""
        if self._closed and not self._ended:
            raise UserError(
                f"the run in {self.config.run_dir} is closed; make it again, and it resumes from "
                "its newest checkpoint"
            )
        if self._failed:
            raise UserError(
                f"a step of {self.config.run_dir} failed before; close the run and make it again, "
                "and it resumes from its newest checkpoint"
            )
        self._failed = True
        with self._active():
            try:
                metrics = next(self._steps, None)
            except Exception:
                self.trainer.tracker.leave("failed")
                raise
        self._failed = False
        if metrics is None:
            self._end()
            raise StopIteration
        return metrics

    def _end(self) -> None:
        """Shows the table of the evaluations and writes the report, once."""
        if self._ended:
            return
        self._ended = True
        with self._active():
            if self.step == self.trainer.total_steps:
                self.trainer.compare()
            self.report()

    @property
    def step(self) -> int:
        """The steps that are done."""
        return self.trainer.step

    def report(self) -> Path | None:
        """Writes RUN/report.html of the run as it is now, prints its path and returns it.

        The end of the last step and `close` do so by themselves. Without a step since the last
        report, the one that is there stays. Returns None where there is nothing to show yet.
        """
        path = finishing.write_report(Path(self.config.run_dir), self.step > self._reported)
        if path is not None:
            self._reported = self.step
        return path

    def _report_the_rest(self) -> None:
        if self.step > self._reported:
            self.report()

    def student(self) -> Student:
        """Returns the student as it is now; a copy, which later steps do not change."""
        trainer, student = self.trainer, object.__new__(Student)
        network = trainer.networks[0].unrounded
        with self._active():
            params = adapters.merge(network, trainer.generator)
            params = jax.tree.map(jnp.copy, params)  # the next step donates its own
        origin = f"{self.config.run_dir}, step {trainer.step}"
        student._set(network.merged, params, trainer.iteration.chat, self.mesh, origin)
        return student

    def export(self, push: str = "", *, public: bool = False) -> Path:
        """Writes the student of a finished run to RUN/export/student, as the command does at its
        end, and returns that directory. The other networks leave the memory: no step can follow.

        `push` is a name of the Hugging Face hub, ORG/NAME, that it is uploaded to; adapters go to
        ORG/NAME-adapter. A new repository is private unless `public`. Raises UserError where the
        hub refuses.
        """
        directory = Path(self.config.run_dir) / "export" / "student"
        adapter = directory.with_name("student-adapter")
        if push:
            pushing.create(pushing.repositories(push, ["student"])["student"], public)
        with self._active():
            finishing.export_student(self.config, self.trainer)
        if push:
            message = f"student of {Path(self.config.run_dir).name}, gad-jax {__version__}"
            print(pushing.upload(push, directory, message))
            if adapter.is_dir() and self.config.lora.rank:
                print(pushing.upload_adapter(push, adapter, message, public))
        return directory

    def close(self) -> None:
        """Waits for the last save, closes the files, leaves a report and frees the directory."""
        self._closed = True
        self._held.close()


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes training rows as `--data.train` reads them, one JSON object a line.

    A row has 'prompt' or 'messages', and 'teacher_response': a text or a list of texts. Raises
    UserError for rows that could not be read again; then nothing is written.
    """
    text, all_rejected = "", True
    for number, row in enumerate(rows, 1):
        all_rejected &= "rejected" in row
        try:
            text += json.dumps(dict(row), ensure_ascii=False) + "\n"
        except (TypeError, ValueError) as error:
            raise UserError(f"row {number}: {error}; correct it, nothing was written") from error
    if not text:
        raise UserError(f"there are no rows for {path}; give one or more")
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place) / Path(path).name
        draft = draft if draft.suffix == ".jsonl" else draft.with_suffix(".jsonl")
        draft.write_text(text, "utf-8")
        sources.read(draft, rejected_field="rejected" if all_rejected else "")
    files.write_atomic(Path(path), text)
    return Path(path)


def _mesh(*axes: int) -> jax.sharding.Mesh:
    devices.keep_slow_programs()
    return make_mesh(*axes)


def _conversations(prompts: Sequence[Prompt]) -> list[list[dict[str, str]]]:
    if isinstance(prompts, str):
        raise UserError("prompts is one text; give a list of prompts")
    asked = [[{"role": "user", "content": x}] if isinstance(x, str) else x for x in prompts]
    for conversation in asked:
        if not isinstance(conversation, Sequence) or not all(map(_is_message, conversation)):
            raise UserError(
                f"a prompt is {conversation!r}; give a text, or a list of messages as "
                '[{"role": "user", "content": "…"}]'
            )
    return [[dict(message) for message in conversation] for conversation in asked]


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("content"), str)

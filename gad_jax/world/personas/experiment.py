"""The experiment: prompts, and for each seed the teacher's answers, the methods, their measures.

Every part that is done stays: the same command resumes.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from gad_jax.base import exits, files, jsonl
from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.sources import Row
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.world import runs
from gad_jax.world.personas import compute, measures, mixture, results
from gad_jax.world.personas.laboratory import Laboratory
from gad_jax.world.personas.measures import Answers
from gad_jax.world.personas.methods import START, TEACHER, Entry
from gad_jax.world.personas.policy import Policy, Responses

if TYPE_CHECKING:
    from gad_jax.world.personas.__main__ import Personas

_KEPT = ("model", "teacher_temperature", "train_prompts", "answers", "heldout", "samples")
_KEPT = (*_KEPT, "max_new_tokens")
_BUNDLED = ("bundled", "bundled:heldout")


def run(settings: "Personas") -> int:
    """Runs or resumes every seed, then reports; returns the exit code."""
    # On a GPU, this process and that of training are there at the same time.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    personas = mixture.read(settings.personas)
    train, heldout = split(settings)
    training = check_flags(settings)
    out = Path(settings.out)
    files.make_writable(out, "--out")
    _keep_settings(settings, out / "settings.json", (train, heldout, personas, training))
    laboratory = Laboratory(settings, training, train, heldout)
    with (
        files.lock_run(out, "--out"),
        exits.StopRequest("stopping after this part; training saves first") as stop,
    ):
        stop.ready = True
        with jax.set_mesh(laboratory.mesh):
            for number in settings.numbers:
                Seed(settings, laboratory, number, stop).run()
    if stop.requested:
        print("stopped; the same command resumes")
        return exits.Exit.OK
    results.report(settings.numbers, settings.entries, personas, out)
    return exits.Exit.OK


def split(settings: "Personas") -> tuple[list[Row], list[Row]]:
    """Returns the prompts of training and those of the measurement, the same for all seeds.

    They are drawn from all prompts; a prompt that comes twice counts once.
    """
    names = (settings.prompts,) if settings.prompts else _BUNDLED
    rows = [row for name in names for row in _read(settings, name)]
    rows = [*{json.dumps(row.messages): row for row in rows}.values()]
    needed = settings.train_prompts + settings.heldout
    if needed > len(rows):
        raise UserError(
            f"{settings.prompts or 'the bundled set'} has {len(rows)} different prompts, and "
            f"--train_prompts={settings.train_prompts} with --heldout={settings.heldout} need "
            f"{needed}; lower one of them, or give more with --prompts"
        )
    order = np.random.default_rng(0).permutation(len(rows))[:needed]
    chosen = [Row(rows[place].messages, (), str(place)) for place in order]
    return chosen[settings.heldout :], chosen[: settings.heldout]


def _read(settings: "Personas", name: str) -> Sequence[Row]:
    columns = settings.data
    return sources.read(
        name,
        need_response=False,
        prompt_field=columns.prompt,
        response_field=columns.response,
    ).rows


def run_flags(
    settings: "Personas", entry: Entry, run: Path, start: Sequence[str], rows: Path, seed: int
) -> list[str]:
    """Returns the flags of a method's run."""
    return [
        f"--config={settings.training}",
        f"--run_dir={run}",
        *start,
        f"--data.train={rows}",
        f"--rollout.max_new_tokens={settings.max_new_tokens}",
        f"--seed={seed}",
        *entry.flags,
        *settings.flags.split(),
    ]


def check_flags(settings: "Personas") -> Config:
    """Returns the settings that all runs have in common.

    Raises UserError for flags of a method that are refused, before anything is loaded.
    """
    for entry in settings.entries:
        if entry.trains:
            start = [f"--student.path={settings.model}"]
            place = Path(settings.out)
            flags = run_flags(settings, entry, place / entry.directory, start, place, 0)
            runs.read_flags(entry.name, flags)
    common = [f"--config={settings.training}", *settings.flags.split()]
    return options.read(Config, common, program="", description="")


def _keep_settings(settings: "Personas", path: Path, parts: tuple[Any, ...]) -> None:
    """Refuses a directory with results of other settings."""
    kept = {name: getattr(settings, name) for name in _KEPT}
    train, heldout, personas, training = parts
    texts = [[row.messages for row in rows] for rows in (train, heldout)]
    kept |= {"prompts": runs.digest(json.dumps(texts)), "personas": runs.digest(str(personas))}
    kept["training"] = runs.digest(options.changed_yaml(training))

    def says(name: str, before: Mapping[str, Any]) -> str:
        return {
            "prompts": "results of other prompts",
            "personas": "results of other personas",
            "training": f"results of other settings than {settings.training} and --flags say now",
        }.get(name, f"results with {name}={before.get(name)}, now {kept.get(name)}")

    runs.keep_settings(path, kept, says)


class Seed:
    """One seed: the teacher's answers, and each method that learns from them."""

    def __init__(
        self, settings: "Personas", laboratory: Laboratory, number: int, stop: exits.StopRequest
    ) -> None:
        self.settings, self.laboratory, self.number, self.stop = settings, laboratory, number, stop
        self.place = Path(settings.out) / f"seed-{number}"
        self._teacher: tuple[Answers, Responses] | None = None

    def run(self) -> None:
        """Does what is missing, until all is done or a stop is requested."""
        self.place.mkdir(parents=True, exist_ok=True)
        missing = [entry for entry in self.settings.entries if not self._is_done(entry)]
        if not missing and (self.place / f"{TEACHER}.json").exists():
            return
        if self._make_teacher():
            for entry in missing:
                if not self.stop.requested:
                    self._do(entry)

    def _path(self, entry: Entry, end: str = "") -> Path:
        return self.place / f"{entry.directory}{end}"

    def _is_done(self, entry: Entry) -> bool:
        path = self._path(entry, ".json")
        if not path.exists():
            return False
        found = json.loads(path.read_text("utf-8"))
        if found["flags"] != [*entry.flags]:
            raise UserError(
                f"{path} is of other flags than {' '.join(entry.flags)}; remove it and "
                f"{self._path(entry)}, or choose another --out"
            )
        if found.get("built_on", _built_on(entry)) != _built_on(entry):
            raise UserError(
                f"{path} is built on {' and '.join(found['built_on'])}, and the methods now name "
                f"{' and '.join(_built_on(entry))} for that; remove all that begins with "
                f"{self._path(entry)}, or choose another --out"
            )
        return True

    def _make_teacher(self) -> bool:
        """Draws and measures the teacher's answers; returns False if it was stopped."""
        laboratory, place = self.laboratory, self.place
        drawn, rows, heldout = (
            place / name for name in ("drawn.jsonl", "teacher.jsonl", "heldout.jsonl")
        )
        count, samples = self.settings.answers, self.settings.samples
        if not drawn.exists():
            laboratory.check_prompts()
        for path, asked, each in (
            (drawn, laboratory.train, count),
            (heldout, laboratory.heldout, samples),
        ):
            going = lambda: not self.stop.requested  # noqa: E731
            if not laboratory.draw(asked, each, self.number, path, going):
                return False
        if not rows.exists():
            laboratory.write_training_rows(drawn, rows)
        answers, _ = self._heldout()
        found = {"prompts": measures.of_answers(answers), "flags": [], "cost": compute.NOTHING}
        files.write_atomic(place / f"{TEACHER}.json", json.dumps(found) + "\n")
        return True

    def _heldout(self) -> tuple[Answers, Responses]:
        """Returns the teacher's answers to the held-out prompts, measured once."""
        if self._teacher is None:
            rows = jsonl.read_rows(self.place / "heldout.jsonl")
            each = self.settings.samples
            starts = range(0, len(rows), each)
            responses = [
                [np.asarray(row["tokens"], np.int32) for row in rows[start : start + each]]
                for start in starts
            ]
            finished = [[row["finished"] for row in rows[start : start + each]] for start in starts]
            self._teacher = self.laboratory.describe(responses, finished), responses
        return self._teacher

    def _do(self, entry: Entry) -> None:
        """Trains by a method and measures its student."""
        started = time.monotonic()
        if entry.trains and not self._train(entry):
            return
        answers, responses = self._heldout()
        shown = self._path(entry, "-answers.jsonl")
        if entry.method.chosen and not entry.trains:
            found = self.laboratory.measure_chosen(
                self._policy(entry.start), self._run_of(entry.judge), answers, self.number, shown
            )
        else:
            policy = self._policy(entry.name)
            found = self.laboratory.measure(policy, answers, responses, self.number, shown)
        cost = compute.of_run(self._path(entry), self._mean_tokens()) if entry.trains else {}
        text = json.dumps(
            {
                "prompts": found,
                "flags": [*entry.flags],
                "built_on": _built_on(entry),
                "cost": compute.NOTHING | cost,
            }
        )
        files.write_atomic(self._path(entry, ".json"), text + "\n")
        minutes = (time.monotonic() - started) / 60
        kl = f", KL(q‖p) {np.mean(found['reverse_kl']):.2f} nats" if "reverse_kl" in found else ""
        print(f"seed {self.number}, {entry.name}: {minutes:.1f} minutes{kl}", flush=True)

    def _run_of(self, name: str) -> Path:
        return self._path(next(entry for entry in self.settings.entries if entry.name == name))

    def _policy(self, name: str) -> Policy:
        if name == START:
            return self.laboratory.base
        return self.laboratory.load(self._run_of(name))

    def _mean_tokens(self) -> float:
        drawn = jsonl.read_rows(self.place / "drawn.jsonl")
        return float(np.mean([len(row["tokens"]) for row in drawn]))

    def _start(self, entry: Entry) -> list[str]:
        """Returns the flags of the student that a method begins at."""
        if entry.start == START:
            return [f"--student.path={self.settings.model}"]
        run, adapter = self._run_of(entry.start), self._run_of(entry.start) / "adapter"
        if not self.laboratory.write_adapter(run, adapter):
            return [f"--student.path={run}"]  # it was trained in full
        return [f"--student.path={self.settings.model}", f"--lora.adapter={adapter}"]

    def _train(self, entry: Entry) -> bool:
        rows = self.place / "teacher.jsonl"
        if entry.method.chosen:
            rows = self._path(entry, "-rows.jsonl")
            if not rows.exists():
                self.laboratory.write_chosen_rows(
                    self._policy(entry.start), self._run_of(entry.judge), self.number, rows
                )
        start = self._start(entry)
        flags = run_flags(self.settings, entry, self._path(entry), start, rows, self.number)
        name = f"seed {self.number}, {entry.name}"
        return runs.train(flags, self._path(entry, ".log"), self.stop, name)


def _built_on(entry: Entry) -> list[str]:
    """Returns the entries whose student and discriminator an entry takes."""
    return [name for name in (entry.start, entry.judge) if name]

"""The seeds of the small world: each makes its world, a warm start, and trains every method."""

import itertools
import json
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gad_jax.base import exits, files, next_command
from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import CAN_CHANGE, STAGES, Config
from gad_jax.world import answers, language, results, runs, words
from gad_jax.world.methods import JUDGE, METHODS, WARM_FLAGS, Method

if TYPE_CHECKING:
    from gad_jax.world.__main__ import World

_PLACES = ("student.path", "discriminator.path", "data.train", "data.heldout")
"""Settings that name files of the directory, which may have been moved."""

_LATER = ("--discriminator.", "--grpo.", "--reward.", "--rollout.ahead")
"""Flags for methods that sample, which the warm start by imitation does not."""


def run(world: "World") -> int:
    """Runs or resumes every seed, then reports; returns the exit code."""
    most = language.count(world.variant)
    if world.rows + world.heldout > most:
        raise UserError(
            f"--rows={world.rows} and --heldout={world.heldout} are more than the "
            f"{most} instructions that the world has; lower them"
        )
    out = Path(world.out)
    files.make_writable(out, "--out")
    _keep_settings(world, out / "settings.json")
    _check_flags(world)
    _refuse_other_runs(world)
    lock = threading.Lock()
    with exits.StopRequest("stopping; training saves first") as stop:
        stop.ready = True
        numbers = itertools.count()
        with ThreadPoolExecutor(
            world.workers, initializer=lambda: _take_cores(next(numbers), world.workers)
        ) as pool:
            jobs = [pool.submit(_Seed(world, n, stop, lock).run) for n in world.numbers]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                stop.requested = True  # the other seeds end too
                raise
    if stop.requested:
        print("stopped; the same command resumes")
        return exits.Exit.OK
    results.report(world.numbers, {name: METHODS[name].says for name in world.chosen}, out)
    next_command.say("evaluate", str(out / f"seed-{world.first_seed}" / world.chosen[-1]))
    return exits.Exit.OK


def _take_cores(worker: int, workers: int) -> None:
    """Pins this thread, and the processes it starts, to a share of the cores."""
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[worker::workers]
        if mine:
            os.sched_setaffinity(0, mine)


def _keep_settings(world: "World", path: Path) -> None:
    """Writes the world's own settings, on which results depend; refuses a directory with others."""
    names = ("rows", "heldout", "layers", "width")
    texts = [write(32, 0, world.variant) for write in (language.teacher, language.public)]
    kept = {name: getattr(world, name) for name in names} | {
        "world": runs.digest(json.dumps(texts))
    }

    def says(name: str, before: Mapping[str, Any]) -> str:
        if name == "world":
            return "results of another world"
        return f"results with {name}={before.get(name)}, now {kept[name]}"

    runs.keep_settings(path, kept, says)


def _check_flags(world: "World") -> None:
    """Raises UserError, led by the method, for flags that one refuses, before anything is made."""
    for name in ("warm", *world.chosen):
        runs.read_flags(name, _flags(world, world.first_seed, name))


def _refuse_other_runs(world: "World") -> None:
    """Raises UserError where a chosen method has been trained with other settings.

    Methods that are not chosen may have any, and others can be added later.
    """
    out = Path(world.out)
    for number, name in itertools.product(world.numbers, ("warm", *world.chosen)):
        run = out / f"seed-{number}" / name
        if not (run.with_name(f"{name}.json").exists() and (run / "config.yaml").exists()):
            continue  # training itself compares, if it has begun
        wanted = options.read(
            Config, _flags(world, number, name), program="python -m gad_jax.train", description=""
        )
        found = options.differences(options.load(Config, run / "config.yaml"), wanted)
        unread = [f"{stage}." for stage in STAGES if stage not in wanted.stages]
        unread += [] if "gad" in wanted.stages else ["grpo."]
        changed = [line for line in found if not line.startswith((*CAN_CHANGE, *_PLACES, *unread))]
        if changed:
            raise UserError(
                f"{out} has results of other settings than {world.training} and --flags say now "
                f"({name}: {'; '.join(changed)}); give the same, or choose another --out"
            )


def _flags(world: "World", number: int, name: str) -> list[str]:
    """Returns the flags with which `gad_jax.train` trains by a method."""
    place = Path(world.out) / f"seed-{number}"
    method = METHODS.get(name, Method("", WARM_FLAGS, start="", rows="public"))
    student = place / method.start / "export/student" if method.start else place / "untrained"
    judge = [f"--discriminator.path={place / JUDGE}"] if method.judged else []
    return [
        f"--config={world.training}",
        f"--run_dir={place / name}",
        f"--student.path={student}",
        f"--data.train={place / method.rows}.jsonl",
        f"--data.heldout={place / 'heldout.jsonl'}",
        f"--seed={number}",
        *judge,
        *method.flags,
        *(flag for flag in world.flags.split() if name != "warm" or not flag.startswith(_LATER)),
    ]


class _Seed:
    """One seed: its world, the warm start, and each method from there."""

    def __init__(self, world: "World", number: int, stop: exits.StopRequest, lock: threading.Lock):
        self.world, self.number, self.stop, self.lock = world, number, stop, lock
        self.place = Path(world.out) / f"seed-{number}"

    def run(self) -> None:
        """Does what is missing, until all is done or a stop is requested."""
        names = {"heldout", *(METHODS[name].rows for name in self.world.chosen)}
        if not all((self.place / f"{name}.jsonl").exists() for name in names):
            self._make_world()
        for name in ("warm", *self.world.chosen):
            self._do(name)
        for name in ("warm", *self.world.chosen):
            self._measure_knowledge(name)

    def _make_world(self) -> None:
        """Writes the untrained student, the training rows and, last, the held-out ones."""
        layers, width = self.world.layers, self.world.width
        self.place.mkdir(parents=True, exist_ok=True)
        words.write_student(
            self.place / "untrained", language.WORDS, layers=layers, width=width, seed=self.number
        )
        count, variant = self.world.rows, self.world.variant
        rows = language.teacher(count + self.world.heldout, self.number, variant)
        public = language.public(count, self.number, variant)
        parts = {
            "public": public,
            "teacher": rows[:count],
            "pairs": [
                row | {"rejected": other["teacher_response"]}
                for row, other in zip(rows, public, strict=False)
            ],
            "heldout": rows[count:],
        }
        for name, part in parts.items():
            text = "".join(json.dumps(row) + "\n" for row in part)
            files.write_atomic(self.place / f"{name}.jsonl", text)

    def _measure_knowledge(self, name: str) -> None:
        """Measures what a method's student knows, unless that is done."""
        result = self.place / f"{name}-knowledge.json"
        judge = self.place / JUDGE if JUDGE in self.world.chosen else None
        if self.stop.requested or _is_known(result, judge):
            return
        with self.lock:
            found = answers.measure_knowledge(
                self.place / name, judge, self.place / "heldout.jsonl", self.number
            )
        files.write_atomic(result, json.dumps(found, indent=1) + "\n")

    def _do(self, name: str) -> None:
        """Trains by a method and measures its answers with the oracle, unless that is done."""
        result = self.place / f"{name}.json"
        if self.stop.requested or result.exists():
            return
        started = time.monotonic()
        if not self._train(name):
            return
        with self.lock:  # one seed at a time: the compiled programs are shared
            found = answers.measure(self.place / name, self.place / "heldout.jsonl", self.number)
        files.write_atomic(result, json.dumps(found, indent=1) + "\n")
        print(
            f"seed {self.number}, {name}: {(time.monotonic() - started) / 60:.1f} minutes; right: "
            f"{found['greedy']['valid']:.1%} of greedy answers, {found['sampled']['valid']:.1%} at "
            "temperature 1",
            flush=True,
        )

    def _train(self, name: str) -> bool:
        """Returns whether training finished; False if a stop request interrupted it."""
        flags = _flags(self.world, self.number, name)
        return runs.train(
            flags, self.place / f"{name}.log", self.stop, f"seed {self.number}, {name}"
        )


def _is_known(result: Path, judge: Path | None) -> bool:
    """Returns whether a file has what a student knows; GAD may have been added since."""
    if not result.exists():
        return False
    return judge is None or "discriminator" in json.loads(result.read_text("utf-8"))["chosen"]

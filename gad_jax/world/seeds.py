"""The seeds of the small world: each makes its world, a warm start, and trains every method."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from gad_jax.base import exits, files, next_command
from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.world import answers, language, results, words
from gad_jax.world.methods import JUDGE, METHODS, WARM_FLAGS, Method

if TYPE_CHECKING:
    from gad_jax.world.__main__ import World

POLL_SECONDS = 0.2


def run(world: "World") -> int:
    """Runs or resumes every seed, then reports; returns the exit code."""
    if world.rows + world.heldout > language.INSTRUCTIONS:
        raise UserError(
            f"--rows={world.rows} and --heldout={world.heldout} are more than the "
            f"{language.INSTRUCTIONS} instructions that the world has; lower them"
        )
    out = Path(world.out)
    files.make_writable(out, "--out")
    _keep_settings(world, out / "settings.json")
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
    """Writes the settings that results depend on; refuses a directory with other settings."""
    names = ("training", "rows", "heldout", "layers", "width")
    texts = [language.teacher(32, seed=0), language.public(32, seed=0)]
    # The repr of Method is in the digest: renaming its fields would refuse old directories.
    flags = str([WARM_FLAGS, *METHODS.values()]) + world.flags
    kept = {name: getattr(world, name) for name in names} | {
        "world": _digest(json.dumps(texts)),
        "settings": _digest(options.to_yaml(options.load(Config, world.training)) + flags),
    }
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        changed = [name for name in kept if before.get(name) != kept[name]]
        if changed:
            name = changed[0]
            what = {
                "world": "results of another world",
                "settings": f"results of other settings than {world.training} and --flags say now",
            }.get(name, f"results with {name}={before.get(name)}, now {kept[name]}")
            raise UserError(f"{path.parent} has {what}; give the same, or choose another --out")
    else:
        files.write_atomic(path, json.dumps(kept, indent=1) + "\n")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Seed:
    """One seed: its world, the warm start, and each method from there."""

    def __init__(self, world: "World", number: int, stop: exits.StopRequest, lock: threading.Lock):
        self.world, self.number, self.stop, self.lock = world, number, stop, lock
        self.place = Path(world.out) / f"seed-{number}"

    def run(self) -> None:
        """Does what is missing, until all is done or a stop is requested."""
        if not (self.place / "heldout.jsonl").exists():
            self._make_world()
        warm = Method("", WARM_FLAGS)
        self._do("warm", warm, self.place / "untrained", self.place / "public.jsonl")
        for name in self.world.chosen:
            method = METHODS[name]
            student = self.place / method.start / "export" / "student"
            rows = (
                self._chosen_rows(method.start) if method.chosen else self.place / "teacher.jsonl"
            )
            self._do(name, method, student, rows)
        for name in ("warm", *self.world.chosen):
            self._measure_knowledge(name)

    def _make_world(self) -> None:
        """Writes the untrained student, the training rows and, last, the held-out ones."""
        layers, width = self.world.layers, self.world.width
        self.place.mkdir(parents=True, exist_ok=True)
        words.write_student(
            self.place / "untrained", language.WORDS, layers=layers, width=width, seed=self.number
        )
        rows = language.teacher(self.world.rows + self.world.heldout, self.number)
        parts = {
            "public": language.public(self.world.rows, self.number),
            "teacher": rows[: self.world.rows],
            "heldout": rows[self.world.rows :],
        }
        for name, part in parts.items():
            text = "".join(json.dumps(row) + "\n" for row in part)
            files.write_atomic(self.place / f"{name}.jsonl", text)

    def _chosen_rows(self, start: str) -> Path:
        """Returns rows with the best of this student's samples by GAD's discriminator; makes them
        where they are missing."""
        path = self.place / f"{start}-chosen.jsonl"
        if not (self.stop.requested or path.exists()):
            with self.lock:
                answers.write_chosen(
                    self.place / start,
                    self.place / JUDGE,
                    self.place / "teacher.jsonl",
                    self.number,
                    path,
                )
        return path

    def _measure_knowledge(self, name: str) -> None:
        """Measures what a method's student knows, unless that is done."""
        result = self.place / f"{name}-knowledge.json"
        if self.stop.requested or result.exists():
            return
        judge = self.place / JUDGE if JUDGE in self.world.chosen else None
        with self.lock:
            found = answers.measure_knowledge(
                self.place / name, judge, self.place / "heldout.jsonl", self.number
            )
        files.write_atomic(result, json.dumps(found, indent=1) + "\n")

    def _do(self, name: str, method: Method, student: Path, rows: Path) -> None:
        """Trains by a method and measures its answers with the oracle, unless that is done."""
        result = self.place / f"{name}.json"
        if self.stop.requested or result.exists():
            return
        started = time.monotonic()
        if not self._train(name, method.flags, student, rows):
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

    def _train(self, name: str, flags: Sequence[str], student: Path, rows: Path) -> bool:
        """Returns whether training finished; False if a stop request interrupted it."""
        command = [
            *(sys.executable, "-m", "gad_jax.train"),
            f"--config={self.world.training}",
            f"--run_dir={self.place / name}",
            f"--student.path={student}",
            f"--data.train={rows}",
            f"--data.heldout={self.place / 'heldout.jsonl'}",
            f"--seed={self.number}",
            *flags,
            *self.world.flags.split(),
        ]
        log = self.place / f"{name}.log"
        with log.open("ab") as output:
            child = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                while child.poll() is None and not self.stop.requested:
                    time.sleep(POLL_SECONDS)
            finally:
                child.terminate()
                code = child.wait()
        if self.stop.requested:
            return False
        if code:
            raise UserError(
                f"seed {self.number}, {name}: training ended with exit code {code}; {log} says why"
            )
        return True

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
from typing import TYPE_CHECKING, Any

import jax

from gad_jax.base import exits, files, next_command
from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.chat import Chat
from gad_jax.distributed.mesh import make_mesh
from gad_jax.rollout.answering import Responder
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.settings.decoding import Decoding
from gad_jax.training import loading
from gad_jax.world import language, oracle, results, words
from gad_jax.world.methods import METHODS, WARM_FLAGS

if TYPE_CHECKING:
    from gad_jax.world.__main__ import World

SAMPLES = 4
"""Answers to each held-out instruction at temperature 1, in addition to the greedy one."""

MAX_NEW_TOKENS = 32
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
        self._do("warm", WARM_FLAGS, self.place / "untrained", self.place / "public.jsonl")
        student, rows = self.place / "warm" / "export" / "student", self.place / "teacher.jsonl"
        for name in self.world.chosen:
            self._do(name, METHODS[name].flags, student, rows)

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

    def _do(self, name: str, flags: Sequence[str], student: Path, rows: Path) -> None:
        """Trains by a method and measures its answers with the oracle, unless that is done."""
        result = self.place / f"{name}.json"
        if self.stop.requested or result.exists():
            return
        started = time.monotonic()
        if not self._train(name, flags, student, rows):
            return
        with self.lock:  # one seed at a time: the compiled programs are shared
            found = _answers(self.place / name, self.place / "heldout.jsonl", self.number)
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


def _answers(run: Path, heldout: Path, seed: int) -> dict[str, Any]:
    """Returns the oracle's measures of a run's student: greedy, sampled, and during training."""
    rows = sources.read(str(heldout)).rows
    asked = [row.messages[-1]["content"] for row in rows]
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        network = loading.load_student(str(run / "export" / "student"), mesh)
        chat = Chat.load(network.tokenizer, "none")
        found = {}
        for name, temperature, samples in (("greedy", 0.0, 1), ("sampled", 1.0, SAMPLES)):
            how = Decoding(
                temperature=temperature, samples=samples, max_new_tokens=MAX_NEW_TOKENS, seed=seed
            )
            responder = Responder(network.config, network.params, chat, mesh, how)
            prompts = responder.encode([row.messages for row in rows])
            groups = responder.answers(prompts, range(len(rows)))
            texts = [[answer.text for answer in group] for group in groups]
            lengths = [answer.tokens for group in groups for answer in group]
            found[name] = oracle.measure(asked, texts) | {"tokens": sum(lengths) / len(lengths)}
            if name == "greedy":
                teacher = [row.responses[0] for row in rows]
                found[name] |= oracle.mean_overlap(teacher, [text for (text,) in texts])
    return found | {"curve": oracle.curve(run)}

"""`python -m gad_jax.world`: SeqKD, GAD and its ablations, where an oracle says what is right.

For each seed: a world's instructions with answers of its public and of its teacher, a small student
trained on the public's until it can do most of what it will ever do, and from there each method, by
`gad_jax.train`, on the same rows of the teacher. What docs/results.md says of the paper's claims
comes from here.
"""

import dataclasses
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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gad_jax.base import exits, files
from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.settings.decoding import Decoding
from gad_jax.settings.fields import option

SAMPLES = 4
"""Answers to each held-out instruction at temperature 1, beside the greedy one."""

MAX_NEW_TOKENS = 32
WARM_FLAGS = (
    "--stage=seqkd",
    "--seqkd.epochs=5",
    "--seqkd.generator_learning_rate=1e-3",
    "--evaluation.every=0",
)
POLL_SECONDS = 0.2


class Method(NamedTuple):
    """What it is, and the flags of `gad_jax.train` that make it."""

    says: str
    flags: tuple[str, ...]


METHODS = {
    "seqkd": Method("SeqKD", ("--stage=seqkd",)),
    "seqkd_longer": Method("SeqKD, 3 × as long", ("--stage=seqkd", "--seqkd.epochs=9")),
    "gad": Method("GAD", ("--stage=warmup,gad",)),
    "no_generator_warmup": Method("no G warm-up", ("--stage=gad", "--gad.epochs=3")),
    "no_discriminator_warmup": Method("no D warm-up", ("--stage=seqkd,gad", "--seqkd.epochs=1")),
    "frozen_discriminator": Method(
        "frozen D",
        ("--stage=seqkd,offpolicy,gad", "--seqkd.epochs=1", "--gad.train_discriminator=false"),
    ),
    "cross_entropy": Method(
        "CE instead of BT", ("--stage=warmup,gad", "--discriminator.objective=cross_entropy")
    ),
}
"""The paper's comparison and its ablations. All go over the teacher's rows three times, but for the
longer SeqKD's nine, and two more for the discriminator that is then frozen."""


@dataclasses.dataclass(frozen=True)
class World:
    """How large the experiment is."""

    out: str = option("runs/world", "directory for everything; the same command goes on there")
    seeds: int = option(5, "repetitions, each with its own world, student and order", "seeds")
    first_seed: int = option(0, "the first of the seeds")
    methods: str = option("all", f"with commas, of {', '.join(METHODS)}; or all")
    training: str = option("world", "configuration of the runs, as --config of gad_jax.train")
    flags: str = option("", "more flags of the runs, as one text with blanks between")
    rows: int = option(8192, "teacher rows", "rows")
    heldout: int = option(500, "instructions that are answered at the end", "instructions")
    layers: int = option(4, "layers of the student", "layers")
    width: int = option(96, "width of the student, a multiple of 24")
    workers: int = option(2, "seeds that are worked on at once", "runs")

    def __post_init__(self) -> None:
        for name in ("seeds", "rows", "heldout", "layers", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.first_seed < 0:
            raise ValueError(f"first_seed={self.first_seed} must be 0 or more")
        if self.width < 24 or self.width % 24:
            raise ValueError(f"width={self.width} must be a multiple of 24")
        for name in self.chosen:
            if name not in METHODS:
                raise ValueError(f"methods names {name!r}; use {', '.join(METHODS)}, or all")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods to run, in the order of `METHODS` when all are."""
        return tuple(METHODS) if self.methods == "all" else tuple(self.methods.split(","))

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    world = options.parse(
        World,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.world",
        description="SeqKD, GAD and ablations in a small world whose oracle knows right answers.",
    )
    return exits.run_guarded(partial(_run, world))


def _run(world: World) -> int:
    from gad_jax.world import language as small
    from gad_jax.world import results

    if world.rows + world.heldout > small.INSTRUCTIONS:
        raise UserError(
            f"--rows={world.rows} and --heldout={world.heldout} are more than the "
            f"{small.INSTRUCTIONS} instructions that the world has; lower them"
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
        print("stopped; the same command goes on from there")
        return exits.Exit.OK
    results.report(world.numbers, {name: METHODS[name].says for name in world.chosen}, out)
    return exits.Exit.OK


def _take_cores(worker: int, workers: int) -> None:
    """Leaves this thread, and the processes that it starts, a share of the cores of their own."""
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[worker::workers]
        if mine:
            os.sched_setaffinity(0, mine)


def _keep_settings(world: World, path: Path) -> None:
    """Writes what results depend on beside them, or refuses to mix them with others'."""
    from gad_jax.world import language as small

    names = ("training", "rows", "heldout", "layers", "width")
    texts = [small.teacher(32, seed=0), small.public(32, seed=0)]
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

    def __init__(self, world: World, number: int, stop: exits.StopRequest, lock: threading.Lock):
        self.world, self.number, self.stop, self.lock = world, number, stop, lock
        self.place = Path(world.out) / f"seed-{number}"

    def run(self) -> None:
        """Does what is not done yet, until the end or a stop request."""
        if not (self.place / "heldout.jsonl").exists():
            self._make_world()
        self._do("warm", WARM_FLAGS, self.place / "untrained", self.place / "public.jsonl")
        student, rows = self.place / "warm" / "export" / "student", self.place / "teacher.jsonl"
        for name in self.world.chosen:
            self._do(name, METHODS[name].flags, student, rows)

    def _make_world(self) -> None:
        """Writes the untrained student, the rows to train on and, last, the held-out ones."""
        from gad_jax.world import language as small
        from gad_jax.world import words

        layers, width = self.world.layers, self.world.width
        self.place.mkdir(parents=True, exist_ok=True)
        words.write_student(
            self.place / "untrained", small.WORDS, layers=layers, width=width, seed=self.number
        )
        rows = small.teacher(self.world.rows + self.world.heldout, self.number)
        parts = {
            "public": small.public(self.world.rows, self.number),
            "teacher": rows[: self.world.rows],
            "heldout": rows[self.world.rows :],
        }
        for name, part in parts.items():
            text = "".join(json.dumps(row) + "\n" for row in part)
            files.write_atomic(self.place / f"{name}.jsonl", text)

    def _do(self, name: str, flags: Sequence[str], student: Path, rows: Path) -> None:
        """Trains by a method and has the oracle look at the answers, unless that is done."""
        result = self.place / f"{name}.json"
        if self.stop.requested or result.exists():
            return
        started = time.monotonic()
        if not self._train(name, flags, student, rows):
            return
        with self.lock:  # one after the other: they share the compiled programs
            found = _answers(self.place / name, self.place / "heldout.jsonl", self.number)
        files.write_atomic(result, json.dumps(found, indent=1) + "\n")
        print(
            f"seed {self.number}, {name}: {(time.monotonic() - started) / 60:.1f} minutes; right: "
            f"{found['greedy']['valid']:.1%} of greedy answers, {found['sampled']['valid']:.1%} at "
            "temperature 1",
            flush=True,
        )

    def _train(self, name: str, flags: Sequence[str], student: Path, rows: Path) -> bool:
        """Returns whether training ended; False when a stop request cut it short."""
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
    """Returns what the oracle says of a run's student: greedy, sampled, and along the way."""
    import jax

    from gad_jax.data import sources
    from gad_jax.data.chat import Chat
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.rollout.answering import Responder
    from gad_jax.training import loading
    from gad_jax.world import oracle

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


if __name__ == "__main__":
    sys.exit(main())

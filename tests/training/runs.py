"""Whole runs of the tiny model in this process, for the tests of training/."""

import json
from pathlib import Path

import jax

from gad_jax.base import exits
from gad_jax.distributed.mesh import make_mesh
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import finishing, setup

EIGHT_ROWS = Path(__file__).parents[1] / "eight_rows.jsonl"
REPLAY = (f"--data.train={EIGHT_ROWS}", "--discriminator.replay_share=0.5")
"""Every step of the tiny run has all rows, so each one but the first replays older answers."""

VARYING = ("seconds/", "tokens_per_second/", "compiles", "host_share")


class StopAt(exits.StopRequest):
    """A stop request that comes after a given step, as a signal would."""

    def __init__(self, trainer, step):
        self.trainer, self.step, self.ready = trainer, step, False

    @property
    def requested(self):
        return self.step is not None and self.trainer.step >= self.step


def settings(directory, *flags):
    """Of a run whose steps all have the eight rows, and so the same shapes: each is compiled once.

    Flags may name other data.
    """
    chosen = ["--config=tiny", f"--run_dir={directory}", "--evaluation.prompts=2", *flags]
    if not any(flag.startswith("--data.train=") for flag in flags):
        chosen.append(f"--data.train={EIGHT_ROWS}")
    return options.read(Config, chosen, program="test", description="")


def run(config, stop_at=None, stop=StopAt, compare=False):
    """Runs until the step, or to the end; returns the trainer, closed."""
    mesh = make_mesh(config.mesh.replica, config.mesh.fsdp, config.mesh.tensor)
    with jax.set_mesh(mesh):
        trainer = setup.build(config, mesh)
        try:
            trainer.finished = trainer.run(stop(trainer, stop_at))
            if trainer.finished and compare:
                trainer.compare()
        finally:
            trainer.close()
    return trainer


def start(config, stop_at=None):
    """As the command does: claims the directory, runs, and at the end compares and exports."""
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)  # the lock makes it
    setup.claim(config)
    trainer = run(config, stop_at, compare=True)
    if trainer.finished:
        with jax.set_mesh(trainer.mesh):
            finishing.export_student(config, trainer)
    return trainer


def rows(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(VARYING)} for line in lines
    ]


def scores(directory):
    """What ranks the checkpoints that are kept, by step."""
    paths = directory.glob("checkpoints/*/meta/record.json")
    records = [json.loads(path.read_text()) for path in paths]
    return {record["step"]: record["score"] for record in records}

"""`python -m gad_jax.train`: distil a student from teacher text, or resume a run.

Start-up is in order: settings, processes, run directory, mesh, data and models, state. The loop is
in `training/trainer.py`, a step's arithmetic in `core/steps.py`.
"""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gad_jax.base import console, exits, files, next_command, shortage, verbosity
from gad_jax.base.errors import CollapseError, LostProcessError, NumericsError
from gad_jax.settings import options
from gad_jax.settings.config import STAGES, Config, default_file
from gad_jax.settings.fields import option

if TYPE_CHECKING:
    from gad_jax.training.trainer import Trainer

DESCRIPTION = (
    "Distils a student from a teacher's text: warm-up, then generative adversarial distillation, "
    "then a comparison on held-out prompts. The same command again resumes the run."
)


@dataclasses.dataclass(frozen=True)
class Settings(Config):
    """A run's settings, and whether it is only tried."""

    dry_run: bool = option(
        False,
        "check all that can be checked, take a step of every stage with tiny networks, and leave "
        "nothing behind",
        common=True,
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    settings = options.parse(
        Settings,
        given,
        program="python -m gad_jax.train",
        description=DESCRIPTION,
        config_default=default_file(given),
        short_help=True,
        shows_progress=True,
    )
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Config)}
    return exits.run_guarded(lambda: _run(Config(**fields), settings.dry_run, given))


def _run(config: Config, dry_run: bool, given: Sequence[str]) -> int:
    _start_logs()  # before orbax is loaded, which would set up logs in absl's form
    # Here, so that --help and mistakes in flags answer before jax is loaded.
    from gad_jax.distributed import processes
    from gad_jax.training import rehearsal, setup

    others = tuple(f"{stage}." for stage in STAGES if stage not in config.stages)
    shown = options.changed_yaml(config, given, others)
    limits = config.limits
    exits.watchdog(60 * limits.other_minutes)
    with exits.StopRequest() as stop, contextlib.ExitStack() as held:
        processes.start(limits.heartbeat_seconds, limits.join_seconds)
        if not processes.is_first():
            logging.getLogger().setLevel(logging.WARNING)

        def claim(run: Config) -> str:
            held.enter_context(files.lock_run(run.run_dir))
            return setup.claim(run)

        try:
            processes.require_same("settings", options.to_yaml(config))
            if dry_run:
                train = partial(_train, report=False)
                went_well = rehearsal.rehearse(config, stop, claim, train, shown)
                if went_well and processes.is_first():
                    next_command.say("train", *next_command.without(given, "--dry_run"))
            else:
                path = processes.from_first(lambda: claim(config))
                if processes.is_first():
                    verbosity.say(f"# {path} has all settings; these are set:\n{shown}")
                processes.require_shared(Path(path))
                finished = _train(config, stop)
                if processes.is_first():
                    _say_next(config, given, finished)
        except Exception as error:
            sentence = processes.lost_peer(error)
            if sentence is None:
                raise
            raise LostProcessError(sentence) from error
        processes.stop()
    exits.watchdog(0.0)
    return exits.Exit.OK


def _say_next(config: Config, given: Sequence[str], finished: bool) -> None:
    if not finished:
        next_command.say("train", *given)
    elif any(Path(config.run_dir).glob("evaluations/*.json")):
        next_command.say("evaluate", config.run_dir)
    else:
        next_command.say("serve", "--model", config.run_dir)


def _train(config: Config, stop: exits.StopRequest, report: bool = True) -> bool:
    """Builds the run and runs it to its end or until `stop`; returns whether that is its end.

    A run that takes no more steps, also one that an alarm stops, leaves a `report`.
    """
    import jax

    from gad_jax.distributed import devices, processes
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.training import finishing, setup

    devices.keep_slow_programs()
    mesh = make_mesh(config.mesh.replica, config.mesh.fsdp, config.mesh.tensor)
    with jax.set_mesh(mesh):
        trainer = setup.build(config, mesh)
        if trainer.step > 0 and processes.is_first():
            verbosity.say(f"resuming after step {trainer.step} of {trainer.total_steps}")
        begun = trainer.step

        def leave_report() -> None:
            if report:
                finishing.write_report(Path(config.run_dir), trainer.step > begun)

        try:
            with shortage.explained(partial(_memory_advice, config, trainer)):
                finished = trainer.run(stop)
                if finished:
                    trainer.compare()
        except (CollapseError, NumericsError):
            leave_report()
            raise
        trainer.close()
        leave_report()
        if finished and config.export:
            finishing.export_student(config, trainer)
        elif not finished and processes.is_first():
            print(
                f"stopped after step {trainer.step} of {trainer.total_steps}, which is saved; "
                "the same command resumes from there"
                if trainer.step
                else "stopped before the first step; the answers so far are kept, and the same "
                "command samples the others"
            )
    return finished


def _memory_advice(config: Config, trainer: "Trainer") -> str:
    from gad_jax.training import preflight

    rollout = trainer.iteration.rollout
    return preflight.advice(config, trainer.networks, trainer.spans, rollout, trainer.mesh)


def _start_logs() -> None:
    console.start_logs(information=True)
    # Orbax warns of every wait, and logs with a traceback what it raises afterwards;
    # `orbax_errors.SaveErrors` listens to that, the console need not.
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("absl").propagate = False


if __name__ == "__main__":
    sys.exit(main())

"""`python -m gad_jax.train`: distil a student from teacher text, or go on with a run.

Start-up is in order: settings, run directory, devices, models and data, state. The loop is in
`trainer.py`, a step's arithmetic in `steps.py`.
"""

import contextlib
import dataclasses
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gad_jax.base import exits, files
from gad_jax.base.errors import LostProcessError, UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config, option

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from gad_jax.data.chat import Chat
    from gad_jax.data.pipeline import Prepared
    from gad_jax.training.trainer import Trainer

CAN_CHANGE = (
    "run_dir",
    "export",
    "evaluation.",
    "checkpoint.",
    "health.",
    "mesh.",
    "limits.",
    "profile.",
    "student.remat",
    "batch.micro_batch_prompts",
    "batch.row_tokens",
    "batch.vocabulary_chunk",
    "rollout.slots",
)
"""Settings that may differ when a run goes on: they change no more than rounding."""

DESCRIPTION = (
    "Distils a student from a teacher's text: warm-up, then generative adversarial distillation, "
    "then a comparison on held-out prompts. The same command again resumes the run."
)


@dataclasses.dataclass(frozen=True)
class Settings(Config):
    """A run's settings, and whether it is only tried."""

    dry_run: bool = option(
        False,
        "check settings, data, devices, memory and disk, take a step of every stage with tiny "
        "networks on these devices, and leave nothing behind",
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    settings = options.parse(
        Settings,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.train",
        description=DESCRIPTION,
        config_default="quickstart",
    )
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Config)}
    return exits.run_guarded(lambda: _run(Config(**fields), settings.dry_run))


def _run(config: Config, dry_run: bool) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("jax", "orbax", "httpx", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax warns of every wait, and logs with a traceback what it raises afterwards;
    # `orbax_errors.SaveErrors` listens to that, the console need not.
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("absl").propagate = False
    # Here, so that --help and mistakes in flags answer before jax is loaded.
    from gad_jax.distributed import processes

    limits = config.limits
    exits.watchdog(60 * limits.other_minutes)
    with exits.StopRequest() as stop, contextlib.ExitStack() as held:
        processes.start(limits.heartbeat_seconds, limits.join_seconds)
        if not processes.is_first():
            logging.getLogger().setLevel(logging.WARNING)

        def claim(run: Config) -> str:
            held.enter_context(files.lock_run(run.run_dir))
            files.clear_partials(Path(run.run_dir))
            _write_config(run)
            return str(Path(run.run_dir) / "config.yaml")

        try:
            processes.require_same("settings", options.to_yaml(config))
            if dry_run:
                code = _rehearse(config, stop, claim)
            else:
                path = processes.from_first(lambda: claim(config))
                if processes.is_first():
                    print(f"# {path}\n{options.to_yaml(config)}", flush=True)
                processes.require_shared(Path(path))
                code = _train(config, stop)
        except Exception as error:
            sentence = processes.lost_peer(error)
            if sentence is None:
                raise
            raise LostProcessError(sentence) from error
        processes.stop()
    exits.watchdog(0.0)
    return code


def _refuse_others(config: Config) -> bool:
    """Refuses to go on with a run that has other settings; returns whether it may have, as one
    without a checkpoint has not begun."""
    run = Path(config.run_dir)
    path = run / "config.yaml"
    changed = [] if not path.exists() else options.differences(options.load(Config, path), config)
    changed = [line for line in changed if not line.startswith(CAN_CHANGE)]
    if changed and any(step.name.isdigit() for step in run.glob("checkpoints/*")):
        raise UserError(
            f"{config.run_dir} holds a run with other settings ({'; '.join(changed)}); "
            "choose another --run_dir, or give the settings that it has"
        )
    return bool(changed)


def _write_config(config: Config) -> None:
    """Stores the settings; what a failed start with others left is replaced."""
    path = Path(config.run_dir) / "config.yaml"
    if _refuse_others(config):
        shutil.rmtree(path.parent / "evaluations", ignore_errors=True)
    files.write_atomic(path, options.to_yaml(config))


def _rehearse(config: Config, stop: exits.StopRequest, claim: Callable[[Config], str]) -> int:
    """Checks a run without beginning it, then takes a step of each of its stages with tiny networks
    in a directory beside the run's, which shows that devices and storage can be used."""
    from gad_jax.distributed import processes
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.training import preflight, state
    from gad_jax.training.checkpoint import Checkpoints
    from gad_jax.training.stages import spans

    scratch = Path(f"{config.run_dir}.dry_run")
    mesh = make_mesh(config.mesh.replica, config.mesh.fsdp, config.mesh.tensor)
    tiny = preflight.rehearsal(config, str(scratch), mesh)

    def begin() -> str:
        _refuse_others(config)
        print(options.to_yaml(config), flush=True)
        return claim(tiny)

    try:
        processes.from_first(begin)
        processes.require_shared(scratch / "config.yaml")
        chat, data, _ = processes.together(lambda: _read(config))
        spans = spans(config, data)
        checkpoints = Checkpoints(scratch / "checkpoints", keep=config.checkpoint.keep)
        preflight.check(config, state.network_configs(config), chat, mesh, checkpoints)
        checkpoints.close()
        code = _train(tiny, stop)
    finally:
        if processes.is_first():
            shutil.rmtree(scratch, ignore_errors=True)
    if processes.is_first() and not stop.requested:
        steps = ", ".join(f"{span.stage} to step {span.end}" for span in spans)
        shape = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
        print(f"the dry run went well: {mesh.size} devices ({shape}); the run has {steps}")
    return code


def _train(config: Config, stop: exits.StopRequest) -> int:
    import jax

    from gad_jax.base.cache import program_dir
    from gad_jax.distributed import processes
    from gad_jax.distributed.mesh import make_mesh

    jax.config.update("jax_compilation_cache_dir", str(program_dir()))
    mesh = make_mesh(config.mesh.replica, config.mesh.fsdp, config.mesh.tensor)
    with jax.set_mesh(mesh):
        trainer = build(config, mesh)
        if trainer.step > 0 and processes.is_first():
            print(f"going on after step {trainer.step} of {trainer.total_steps}", flush=True)
        finished = trainer.run(stop)
        trainer.profiler.close()
        trainer.checkpoints.close()
        if finished:
            trainer.compare()
        trainer.tracker.close()
        if finished and config.export:
            _export(config, trainer)
        elif not finished and processes.is_first():
            print(
                f"stopped after step {trainer.step} of {trainer.total_steps}, which is saved; "
                "the same command goes on from there"
            )
    return exits.Exit.OK


def build(config: Config, mesh: "Mesh") -> "Trainer":
    """Returns the run that the settings describe, where its newest checkpoint left it.

    Raises UserError for settings, data and models that do not fit each other.
    """
    from gad_jax.distributed import processes
    from gad_jax.training.checkpoint import Checkpoints
    from gad_jax.training.trainer import Trainer

    chat, data, held_out = processes.together(lambda: _read(config))
    fingerprints = [data.fingerprint, held_out.fingerprint if held_out else ""]
    processes.require_same("training data or tokenizer", " ".join(fingerprints))
    checkpoints = Checkpoints(
        Path(config.run_dir) / "checkpoints",
        keep=config.checkpoint.keep,
        keep_best=config.checkpoint.keep_best,
    )
    return Trainer(config, mesh, chat, data, held_out, checkpoints)


def _read(config: Config) -> "tuple[Chat, Prepared, Prepared | None]":
    """Returns the tokenizer's chat, the training rows and the held-out rows."""
    from gad_jax.data import pipeline, sources
    from gad_jax.data.chat import Chat
    from gad_jax.data.sources import mixture
    from gad_jax.distributed import processes
    from gad_jax.models import source, weights

    directory = source.resolve(config.student.path)
    weights.read_config(directory)  # whose mistakes transformers would take for the tokenizer's
    chat = Chat.load(directory, config.data.template)

    def prepare(name: str) -> pipeline.Prepared:
        rows = sources.read(
            name,
            skip_invalid=config.data.skip_invalid,
            keep_unfinished=config.data.keep_unfinished,
        )
        prepared = pipeline.prepare(
            rows,
            chat,
            max_prompt_tokens=config.data.max_prompt_tokens,
            max_response_tokens=config.rollout.max_new_tokens,
            max_invalid_share=config.data.max_invalid_share,
        )
        if processes.is_first():
            print(f"{name}: {prepared.stats}", flush=True)
        return prepared

    held_out = prepare(config.data.heldout) if config.data.heldout else None
    names, shares = mixture.split(config.data.train, "--data.train")
    return chat, pipeline.mix([prepare(name) for name in names], shares), held_out


def _export(config: Config, trainer: "Trainer") -> None:
    """Writes the student as a Hugging Face directory, unless it has been written before."""
    from gad_jax.distributed import processes
    from gad_jax.models import weights

    directory = Path(config.run_dir) / "export" / "student"
    if not processes.from_first(lambda: "there" if directory.exists() else ""):
        network, params, chat = trainer.networks[0], trainer.state.generator, trainer.chat
        weights.save(directory, network, params, chat.tokenizer, chat.end_tokens)
    if processes.is_first():
        print(
            f"the student is in {directory}; python -m gad_jax.generate --model {directory} asks it"
        )


if __name__ == "__main__":
    sys.exit(main())

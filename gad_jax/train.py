"""`python -m gad_jax.train`: distil a student from teacher text, or go on with a run.

Start-up is in order: settings, run directory, devices, models and data, state. The loop is in
`trainer.py`, a step's arithmetic in `steps.py`.
"""

import contextlib
import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gad_jax import guard, options
from gad_jax.config import Config
from gad_jax.errors import LostProcessError, UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from gad_jax.data.chat import Chat
    from gad_jax.data.pipeline import Prepared
    from gad_jax.trainer import Trainer

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


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    config = options.parse(
        Config,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.train",
        description=DESCRIPTION,
        config_default="quickstart",
    )
    return guard.run_guarded(lambda: _run(config))


def _run(config: Config) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("jax", "orbax", "httpx", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax warns of every wait, and logs with a traceback what it raises afterwards;
    # `orbax_errors.SaveErrors` listens to that, the console need not.
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("absl").propagate = False
    # Here, so that --help and mistakes in flags answer before jax is loaded.
    from gad_jax import processes

    limits = config.limits
    guard.watchdog(60 * limits.other_minutes)
    with guard.StopRequest() as stop, contextlib.ExitStack() as held:
        processes.start(limits.heartbeat_seconds, limits.join_seconds)
        if not processes.is_first():
            logging.getLogger().setLevel(logging.WARNING)

        def claim() -> str:
            held.enter_context(guard.lock_run(config.run_dir))
            guard.clear_partials(Path(config.run_dir))
            _write_config(config)
            return ""

        try:
            processes.require_same("settings", options.to_yaml(config))
            processes.from_first(claim)
            processes.require_shared(Path(config.run_dir) / "config.yaml")
            code = _train(config, stop)
        except Exception as error:
            sentence = processes.lost_peer(error)
            if sentence is None:
                raise
            raise LostProcessError(sentence) from error
        processes.stop()
    guard.watchdog(0.0)
    return code


def _write_config(config: Config) -> None:
    """Prints and stores the settings; refuses to go on with a run that has others.

    A run without a checkpoint has not begun: what a failed start left is replaced.
    """
    run = Path(config.run_dir)
    path = run / "config.yaml"
    text = options.to_yaml(config)
    changed = [] if not path.exists() else options.differences(options.load(Config, path), config)
    changed = [line for line in changed if not line.startswith(CAN_CHANGE)]
    if changed and any(step.name.isdigit() for step in run.glob("checkpoints/*")):
        raise UserError(
            f"{config.run_dir} holds a run with other settings ({'; '.join(changed)}); "
            "choose another --run_dir, or give the settings that it has"
        )
    if changed:
        shutil.rmtree(run / "evaluations", ignore_errors=True)
    guard.write_atomic(path, text)
    print(f"# {path}\n{text}", flush=True)


def _train(config: Config, stop: guard.StopRequest) -> int:
    import jax

    from gad_jax import processes, sharding
    from gad_jax.cache import cache_dir

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    mesh = sharding.make_mesh(config.mesh.replica, config.mesh.fsdp, config.mesh.tensor)
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
    return guard.Exit.OK


def build(config: Config, mesh: "Mesh") -> "Trainer":
    """Returns the run that the settings describe, where its newest checkpoint left it.

    Raises UserError for settings, data and models that do not fit each other.
    """
    from gad_jax import processes
    from gad_jax.checkpoint import Checkpoints
    from gad_jax.trainer import Trainer

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
    from gad_jax import processes
    from gad_jax.data import pipeline, sources
    from gad_jax.data.chat import Chat
    from gad_jax.data.sources import mixture
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
    from gad_jax import processes
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

"""From settings to a run: its directory and the trainer with all parts.

`Config` is read here, once; the parts know only what they need.
"""

import shutil
from functools import partial
from pathlib import Path

from jax.sharding import Mesh

from gad_jax.base import files
from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.data.pipeline import Prepared
from gad_jax.distributed import processes
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.engine import RolloutProgram
from gad_jax.rollout.sampling import Sampler
from gad_jax.settings import options
from gad_jax.settings.config import CAN_CHANGE, Config
from gad_jax.training import exporting, preflight, reading, stages, state
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.deadline import Deadline, stop_time
from gad_jax.training.evaluating import Evaluations
from gad_jax.training.exporting import Export
from gad_jax.training.iteration import Iteration
from gad_jax.training.loading import Made
from gad_jax.training.profiler import Profiler
from gad_jax.training.saving import Resumed, Saver
from gad_jax.training.tracker import Tracker
from gad_jax.training.trainer import Trainer

Networks = tuple[DecoderConfig, DecoderConfig]
"""The configs of generator and discriminator."""


def claim(config: Config) -> str:
    """Stores the settings in the run directory; returns their file.

    What a failed start with other settings left is replaced. Raises UserError where the directory
    holds a run with other settings.
    """
    path = Path(config.run_dir) / "config.yaml"
    files.clear_partials(path.parent)
    if refuse_other_settings(config):
        shutil.rmtree(path.parent / "evaluations", ignore_errors=True)
        (path.parent / reading.HELD_OUT).unlink(missing_ok=True)
    files.write_atomic(path, options.to_yaml(config))
    return str(path)


def refuse_other_settings(config: Config) -> bool:
    """Returns whether the directory has other settings but no checkpoint: it may be replaced.

    Raises UserError where it has a checkpoint of a run with other settings, or of a run whose
    settings are not there to compare.
    """
    run = Path(config.run_dir)
    path = run / "config.yaml"
    saved = any(step.name.isdigit() for step in run.glob("checkpoints/*"))
    if saved and not path.exists():
        raise UserError(
            f"{config.run_dir} holds the checkpoints of a run but not its config.yaml; copy the "
            "file back, or choose another --run_dir"
        )
    changed = [] if not path.exists() else options.differences(options.load(Config, path), config)
    changed = [line for line in changed if not line.startswith(CAN_CHANGE)]
    if changed and saved:
        raise UserError(
            f"{config.run_dir} holds a run with other settings ({'; '.join(changed)}); "
            "choose another --run_dir, or give the settings that it has"
        )
    return bool(changed)


def build(config: Config, mesh: Mesh) -> Trainer:
    """Returns the run that the settings describe, where its newest checkpoint left it.

    Raises UserError for settings, data and models that do not fit each other.
    """
    config, chat, data, held_out, _ = reading.read(config)
    networks = state.network_configs(config)
    spans = stages.spans(config, data, networks)
    directory = Path(config.run_dir)
    checkpoints = Checkpoints(
        directory / "checkpoints",
        keep=config.checkpoint.keep,
        keep_best=config.checkpoint.keep_best,
    )
    preflight.check(config, networks, spans, chat, mesh, checkpoints)
    stop_by = stop_time(config.checkpoint.must_save_by, config.checkpoint.margin_minutes)
    saver = Saver(checkpoints, config.checkpoint, data.fingerprint, len(data.rows))
    resumed = saver.restore(spans, mesh, config.run_dir)
    train_state = resumed.state if resumed else state.load(config.student.path, config.seed, mesh)
    tracker = Tracker(directory, enabled=processes.is_first())
    trainer = Trainer(
        mesh=mesh,
        networks=networks,
        spans=spans,
        iteration=_iteration(config, networks, chat, mesh, resumed),
        evaluations=_evaluations(config, networks, chat, mesh, held_out, tracker),
        saver=saver,
        tracker=tracker,
        deadline=Deadline(stop_by, config.checkpoint.every_minutes),
        health_settings=config.health,
        limits=config.limits,
        max_skips=config.optimizer.max_skips,
        evaluate_every=config.evaluation.every,
        load_discriminator=partial(state.load_discriminator, config, networks[1], mesh),
        row_ids=[row.id for row in data.rows],
        state=train_state,
        step=int(train_state.step),
        health_state=resumed.health if resumed else {},
    )
    tracker.start(trainer.step, trainer.total_steps)
    trainer.iteration.compiles.begins = tracker.compiling
    return trainer


def export_student(config: Config, trainer: Trainer) -> None:
    """Writes the student as a Hugging Face directory, unless it has been written before."""
    directory = Path(config.run_dir) / "export" / "student"
    meta = trainer.saver.meta(trainer.step, trainer.spans[-1].stage)
    export = Export(
        network=trainer.networks[0],
        params=trainer.state.generator,
        chat=trainer.iteration.chat,
        made=Made(config, trainer.step, meta),
        run=Path(config.run_dir),
    )
    found = processes.from_first(directory.exists)
    if not exporting.is_current(directory, export):
        if found and processes.is_first():
            print(f"{directory} is not of these settings and checkpoints; it is replaced")
        exporting.write(directory, export)
    if processes.is_first():
        print(
            f"the student is in {directory}; python -m gad_jax.generate --model {directory} asks it"
        )


def _iteration(
    config: Config, networks: Networks, chat: Chat, mesh: Mesh, resumed: Resumed | None
) -> Iteration:
    rollout, batch = config.rollout, config.batch
    program = RolloutProgram(
        samples=rollout.samples,
        max_new_tokens=rollout.max_new_tokens,
        end_tokens=chat.end_tokens,
        pad_token=chat.pad_token,
        sampler=Sampler(rollout.temperature, rollout.top_k, rollout.top_p),
        slots=rollout.slots,
        longest=config.longest,
    )
    return Iteration(
        generator=networks[0],
        chat=chat,
        mesh=mesh,
        rollout=program,
        row_tokens=config.row_tokens,
        micro_batches=batch.prompts // (batch.micro_batch_prompts or batch.prompts),
        shapes=resumed.shapes if resumed else set(),
        profiler=Profiler(config.profile.window, config.run_dir, networks),
    )


def _evaluations(
    config: Config,
    networks: Networks,
    chat: Chat,
    mesh: Mesh,
    held_out: Prepared | None,
    tracker: Tracker,
) -> Evaluations:
    return Evaluations(
        directory=Path(config.run_dir) / "evaluations",
        held_out=held_out,
        chat=chat,
        mesh=mesh,
        network=networks[0],
        options=config.evaluation,
        max_new_tokens=config.rollout.max_new_tokens,
        tracker=tracker,
    )

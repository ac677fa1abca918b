"""From settings to a run: its directory and the trainer with all parts.

`Config` is read here, once; the parts know only what they need.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from jax.sharding import Mesh

from gad_jax.base import files, verbosity
from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.data.pipeline import Prepared
from gad_jax.distributed import processes
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.engine import RolloutProgram
from gad_jax.rollout.sampling import Sampler
from gad_jax.settings import options, reward_judge
from gad_jax.settings.config import CAN_CHANGE, Config
from gad_jax.settings.operation import Checkpoint
from gad_jax.training import (
    ahead,
    architectures,
    bases,
    continuing,
    custom_step,
    evaluating,
    loading,
    origins,
    preflight,
    reading,
    replay,
    saving,
    selection,
    snapshots,
    stages,
    state,
)
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.custom_step import CustomStep
from gad_jax.training.deadline import Deadline, stop_time
from gad_jax.training.evaluating import Evaluations
from gad_jax.training.iteration import Iteration
from gad_jax.training.origins import Origin
from gad_jax.training.profiler import Profiler
from gad_jax.training.rewards import paying
from gad_jax.training.rewards.paying import Rewards
from gad_jax.training.saving import Resumed, Saver
from gad_jax.training.stages import Span
from gad_jax.training.step_rows import Packer
from gad_jax.training.tracker import Tracker
from gad_jax.training.trackers import opening, sending
from gad_jax.training.trainer import Trainer
from gad_jax.types import Params

Networks = tuple[DecoderConfig, DecoderConfig]
"""The configs of generator and discriminator."""


_DIRECTORIES = (
    *("checkpoints", "evaluations", "samples", "snapshots", "tensorboard"),
    *("export", "export/student"),
)
_FILES = (
    *("config.yaml", "metrics.jsonl", "status.json", reading.HELD_OUT, origins.FILE),
    *(reward_judge.FILE, sending.FILE),
)


def claim(config: Config) -> str:
    """Stores the settings in the run directory; returns their file.

    What a failed start with other settings left is replaced. The settings of a run that has
    checkpoints are stored by `build`, once they are known to fit it. Raises UserError where the
    directory holds a run with other settings, or a file where a directory must be.
    """
    run = Path(config.run_dir)
    path = run / "config.yaml"
    opening.require(config.tracking)
    _check_places(run)
    files.clear_partials(run)
    replaces = refuse_other_settings(config)
    if _saved(run):
        origins.read(config, run)
        return str(path)
    if origins.pin(config, run) or replaces:
        for name in ("evaluations", snapshots.DIRECTORY):
            shutil.rmtree(run / name, ignore_errors=True)
        (run / reading.HELD_OUT).unlink(missing_ok=True)
        (run / sending.FILE).unlink(missing_ok=True)  # it is another run, in trackers too
    files.write_atomic(path, options.to_yaml(config))
    return str(path)


def _saved(run: Path) -> bool:
    """Returns whether a run has checkpoints, damaged ones included."""
    return any(step.name.isdigit() for step in run.glob("checkpoints/*"))


def _check_places(run: Path) -> None:
    """Raises UserError for a file where the run keeps a directory, and the other way round."""
    for name in (*_DIRECTORIES, *_FILES):
        place = run / name
        wanted = "directory" if name in _DIRECTORIES else "file"
        found = "directory" if place.is_dir() else "file" if place.is_file() else "broken link"
        if (place.exists() or place.is_symlink()) and found != wanted:
            what = "device" if place.exists() and found == "broken link" else found
            raise UserError(
                f"{place} is a {what}, and a run has a {wanted} of that name; move it away, or "
                "choose another --run_dir"
            )


def refuse_other_settings(config: Config) -> bool:
    """Returns whether the directory has other settings but no checkpoint: it may be replaced.

    Raises UserError where it has a checkpoint of a run whose settings differ in what the steps so
    far depend on, or of a run whose settings are not there to compare.
    """
    run = Path(config.run_dir)
    path = run / "config.yaml"
    saved = _saved(run)
    if saved and not path.exists():
        raise UserError(
            f"{config.run_dir} holds the checkpoints of a run but not its config.yaml; copy the "
            "file back, or choose another --run_dir"
        )
    if not path.exists():
        return False
    old = options.load(Config, path)
    changed = [x for x in options.differences(old, config) if not x.startswith(CAN_CHANGE)]
    if saved and changed:
        records = selection.read_records(run / "checkpoints")
        if records:
            changed = continuing.refused(old, config, records[max(records)]["meta"]["stage"])
        if changed:
            raise UserError(
                f"{config.run_dir} holds a run with other settings ({'; '.join(changed)}); "
                "choose another --run_dir, or give the settings that it has"
            )
    return bool(changed) and not saved


def _take_up(
    config: Config, data: Prepared, networks: Networks, spans: tuple[Span, ...]
) -> list[str]:
    """Stores the settings of a run that resumes; returns what to say of lengths that changed.

    Raises UserError for lengths that do not fit the steps that are done.
    """
    run = Path(config.run_dir)

    def newest() -> list[object] | None:
        records = selection.read_records(run / "checkpoints")
        if not (records and (run / "config.yaml").exists()):
            return None
        return [records[max(records)]["meta"]["stage"], max(records)]

    found = processes.from_first(newest)
    if found is None:
        return []
    before = options.load(Config, run / "config.yaml")
    lines = continuing.check(stages.spans(before, data, networks), spans, *found)
    processes.all_of(True)  # have read it
    if processes.is_first() and options.differences(before, config):
        files.write_atomic(run / "config.yaml", options.to_yaml(config))
    return lines


def build(config: Config, mesh: Mesh) -> Trainer:
    """Returns the run that the settings describe, where its newest checkpoint left it.

    Raises UserError for settings, data and models that do not fit each other.
    """
    given, directory = config, Path(config.run_dir)
    rewards, own = paying.load(config), custom_step.load(config)
    taken = origins.read(given, directory)
    snapshots.refuse_untrained(given, taken)
    config, chat, data, held_out, _ = reading.read(origins.effective(given, directory))
    architectures.check_devices(config)
    networks = architectures.configs(config)
    spans = stages.spans(config, data, networks)
    lines = [*_take_up(given, data, networks, spans), *architectures.warnings(config)]
    checkpoints = _checkpoints(config)
    preflight.check(_counted(config, held_out), networks, spans, chat, mesh, checkpoints)
    paid = paying.identities(rewards, config, networks[0].compute_dtype, chat, mesh)
    saver = _saver(config, networks, data, held_out, checkpoints, paid, own)
    student, other = taken.get("student"), origins.discriminator(taken, given)
    bases.refuse_runs(networks, student and student.name, other and other.name)
    saved = saver.restore(spans, mesh, config.run_dir)
    _say(lines if saved else [*lines, *origins.sentences(taken, given)])
    at = saved or Resumed.first(state.load(config, networks[0], mesh, _weights(student, mesh)))
    tracker = Tracker(directory, enabled=processes.is_first(), trackers=opening.trackers(given))
    iteration = _iteration(config, networks, chat, mesh, at, rewards, own)
    trainer = Trainer(
        mesh=mesh,
        networks=networks,
        spans=spans,
        iteration=iteration,
        evaluations=Evaluations(config, held_out, chat, mesh, networks[0], tracker),
        saver=saver,
        tracker=tracker,
        deadline=_deadline(config.checkpoint),
        health_settings=config.health,
        limits=config.limits,
        max_skips=config.optimizer.max_skips,
        evaluate_every=config.evaluation.every,
        load_discriminator=partial(
            state.load_discriminator, config, networks[1], mesh, _weights(other, mesh)
        ),
        row_ids=[row.id for row in data.rows],
        state=at.state,
        frozen=bases.load(config, networks, mesh),
        snapshots=snapshots.Snapshots(config, data, iteration),
        step=int(at.state.step),
        health_state=at.health,
    )
    return _started(trainer)


def _started(trainer: Trainer) -> Trainer:
    """Returns the trainer, with console and files at its step."""
    tracker, ends = trainer.tracker, {f"after {span.stage}": span.end for span in trainer.spans}
    tracker.start(trainer.step, trainer.total_steps)
    trainer.iteration.compiles.begins = tracker.compiling
    trainer.evaluations.recall(trainer.step, ends)
    return trainer


def _say(lines: list[str]) -> None:
    if processes.is_first():
        verbosity.say(lines)


def _counted(config: Config, held_out: Prepared | None) -> Config:
    """Returns the settings with the number of held-out prompts that an evaluation answers."""
    prompts = evaluating.count(config, len(held_out) if held_out else 0)
    return replace(config, evaluation=replace(config.evaluation, prompts=prompts))


def _checkpoints(config: Config) -> Checkpoints:
    options = config.checkpoint
    return Checkpoints(
        Path(config.run_dir) / "checkpoints",
        keep=options.keep,
        keep_best=options.keep_best,
        is_good=saving.is_good(config.health),
    )


def _saver(
    config: Config,
    networks: Networks,
    data: Prepared,
    held_out: Prepared | None,
    checkpoints: Checkpoints,
    paid: dict[str, str],
    own: CustomStep | None,
) -> Saver:
    options = config.checkpoint
    measured = evaluating.measured(config, held_out)
    known = bases.identities(config, networks), paid, own
    return Saver(checkpoints, options, data.fingerprint, len(data.rows), measured, *known)


def _deadline(options: Checkpoint) -> Deadline:
    stop_by = stop_time(options.must_save_by, options.margin_minutes)
    return Deadline(stop_by, options.every_minutes)


def _weights(origin: Origin | None, mesh: Mesh) -> Callable[[], Params] | None:
    """Returns the function that reads a network of another run; None where there is none."""
    if origin is None:
        return None
    return lambda: loading.load_from_run(origin.path, origin.part, mesh).params


def _iteration(
    config: Config,
    networks: Networks,
    chat: Chat,
    mesh: Mesh,
    at: Resumed,
    rewards: Rewards | None,
    own: CustomStep | None,
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
        resizes=rollout.resize,
    )
    return Iteration(
        generator=networks[0],
        chat=chat,
        mesh=mesh,
        rollout=program,
        packer=Packer(
            mesh,
            config.row_tokens,
            micro_batches=batch.prompts // (batch.micro_batch_prompts or batch.prompts),
            shapes=at.shapes,
            judged=networks[1].vocabulary,
        ),
        profiler=Profiler(config.profile.window, config.run_dir, networks),
        pool=_pool(config, networks, at),
        rewards=rewards,
        custom_step=own,
        pending=ahead.restored(at.host, at.shapes),
    )


def _pool(config: Config, networks: Networks, at: Resumed) -> replay.Pool | None:
    """Returns the student's older answers, as they were in the checkpoint."""
    pool = replay.make(config, networks[0].vocabulary)
    if pool is not None:
        pool.restore(at.host)
    return pool

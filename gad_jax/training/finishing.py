"""What a run leaves: its report, and at its end the student, of the best checkpoint or the last."""

from pathlib import Path

import jax.numpy as jnp

from gad_jax.base.errors import StorageError, first_line
from gad_jax.distributed import processes
from gad_jax.models import adapters
from gad_jax.settings.config import Config
from gad_jax.training import exporting, loading, origins, report
from gad_jax.training.exporting import Export
from gad_jax.training.loading import Made
from gad_jax.training.trainer import Trainer


def write_report(run: Path, taken: bool) -> Path | None:
    """Writes RUN/report.html, in the first process; prints its path and returns it.

    Returns None where there is none: in the other processes, and in a run without steps. `taken` is
    whether this process took a step: otherwise a report that is there stays, as it may have a
    judge's table. A failure is a warning, as no run is to end by its pictures.
    """
    if not processes.is_first():
        return None
    path = run / report.NAME
    try:
        if taken or not path.is_file():
            from gad_jax.training.report import writing  # here: its libraries take half a second

            path = writing.write(run)
    except Exception as error:
        said = first_line(error, with_class=True)
        print(f"warning: {path} was not written ({said}); see python -m gad_jax.evaluate {run}")
        return None
    if path is not None:
        print(f"the report is {path}", flush=True)
    return path


def export_student(config: Config, trainer: Trainer) -> None:
    """Writes the student as a Hugging Face directory, unless it has been written before.

    That is the best checkpoint or the last, as `checkpoint.export` says. All processes call it, at
    the end: other networks than the student leave the memory.
    """
    trainer.saver.checkpoints.wait()
    run = Path(config.run_dir)
    directory = run / "export" / "student"
    step, why = processes.from_first(lambda: list(_exported(config, trainer)))
    if processes.is_first() and why:
        print(why, flush=True)
    network, last = trainer.networks[0], trainer.spans[-1].stage
    adapter = loading.Adapter(network, trainer.state.generator) if network.lora else None
    made = Made(origins.effective(config, run), step, trainer.saver.meta(step, last))
    trainer.state = trainer.state._replace(
        generator_optimizer=None, discriminator=None, discriminator_optimizer=None, reference=None
    )
    params = None
    if step != trainer.step:
        try:
            best = loading.load_from_run(run / "checkpoints" / str(step), "generator", trainer.mesh)
            assert best.made is not None  # it comes from a run
            params, made, adapter = best.params, best.made, best.adapter
        except StorageError as error:
            made = made._replace(step=trainer.step, meta=trainer.saver.meta(trainer.step, last))
            if processes.is_first():
                print(f"warning: the last step, {trainer.step}, is exported in its place: {error}")
    if params is None:
        params = adapters.merge(network, trainer.generator, jnp.dtype(network.stored_dtype))
    export = Export(network.merged, params, trainer.iteration.chat, made, run, adapter)
    found = processes.from_first(directory.exists)
    if not exporting.is_current(directory, export):
        if found and processes.is_first():
            print(f"{directory} is not of these settings and checkpoints; it is replaced")
        exporting.write(directory, export)
        exporting.write_adapter(directory.with_name("student-adapter"), export)
    if processes.is_first():
        print(
            f"the student is in {directory}; python -m gad_jax.generate --model {directory} asks it"
        )


def _exported(config: Config, trainer: Trainer) -> tuple[int, str]:
    """Returns the step that a finished run exports, and why, where there is a choice."""
    options = config.checkpoint
    if not (config.data.heldout and options.keep_best):
        return trainer.step, ""
    best = trainer.saver.best()
    if best is None:
        return trainer.step, (
            f"exported: the last step, {trainer.step}; no evaluation at a checkpoint had answers "
            f"of {options.best_min_length_ratio:g} to {options.best_max_length_ratio:g} times the "
            "teacher's length"
        )
    where = f"the best of its stage by {best.metric} ({best.score:.4f})"
    if best.step == trainer.step:
        return trainer.step, f"exported: step {trainer.step}, the last and {where}"
    if options.export == "last":
        named = f"{config.run_dir}@best"
        return trainer.step, f"exported: step {trainer.step}, the last; {named} names {where}"
    stage = trainer.saver.checkpoints.read_meta(best.step)["stage"]
    return best.step, (
        f"exported: step {best.step} ({stage}), {where} with answers of acceptable length; the "
        f"last is step {trainer.step}, which --checkpoint.export=last takes"
    )

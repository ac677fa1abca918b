"""`--dry_run`: checks a run without beginning it, and tries its programs with tiny networks."""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from gad_jax.base import verbosity
from gad_jax.base.exits import StopRequest
from gad_jax.distributed import processes
from gad_jax.distributed.mesh import make_mesh
from gad_jax.settings import baselines
from gad_jax.settings.config import Config
from gad_jax.training import (
    architectures,
    origins,
    preflight,
    reading,
    setup,
    snapshots,
    stages,
)
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.rewards import paying
from gad_jax.training.trackers import opening

TINY_TENSOR = 2
"""The tiny network has so many key/value heads."""


def rehearse(
    config: Config,
    stop: StopRequest,
    claim: Callable[[Config], str],
    train: Callable[[Config, StopRequest], bool],
    shown: str,
) -> bool:
    """Checks a run without beginning it, then takes a step of each of its stages with tiny networks
    in a directory next to the run's, which shows that devices and storage can be used.

    `shown` are the settings to print. Returns whether it came to its end and found nothing that
    would make the run a bad one."""
    scratch = Path(f"{config.run_dir}.dry_run")
    mesh = make_mesh(config.mesh.replica, config.mesh.fsdp, config.mesh.tensor)
    tiny = _tiny_run(config, str(scratch), mesh)

    def begin() -> str:
        _check_before(config)
        verbosity.say(shown)
        return claim(tiny)

    try:
        processes.from_first(begin)
        processes.require_shared(scratch / "config.yaml")
        run = Path(config.run_dir)
        snapshots.refuse_untrained(config, _origins(config, run))
        text = reading.read(origins.replaced(config, _origins(config, run)), store=False)
        networks = architectures.configs(text.config)
        spans = stages.spans(text.config, text.rows, networks)
        checkpoints = Checkpoints(scratch / "checkpoints", keep=config.checkpoint.keep)
        preflight.check(text.config, networks, spans, text.chat, mesh, checkpoints)
        checkpoints.close()
        if config.reward.rehearsed() != config.reward:  # the tiny run leaves terms out
            terms = paying.load(text.config)
            assert terms is not None
            terms.load_models(text.config, networks[0].compute_dtype, text.chat, mesh)
        if processes.is_first():
            verbosity.say("a step of each stage, with tiny networks and the bundled rows:")
        finished = train(tiny, stop)
    finally:
        if processes.is_first():
            shutil.rmtree(scratch, ignore_errors=True)
    if processes.is_first() and finished:
        steps = ", ".join(f"{span.stage} to step {span.end}" for span in spans)
        shape = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
        verdict = "the dry run went well"
        if text.losses:
            verdict = "the run would start, but see the warnings: much of the data would be lost"
        print(f"{verdict}: {mesh.size} devices ({shape}); the run has {steps}")
    return finished and not text.losses


def _check_before(config: Config) -> None:
    """Raises UserError for what the run would be refused for before it is claimed."""
    opening.require(config.tracking)
    setup.refuse_other_settings(config)


def _origins(config: Config, run: Path) -> origins.Origins:
    """Returns where the networks of the run come from, or would."""
    stored = (run / origins.FILE).exists()
    return processes.together(lambda: (origins.read if stored else origins.find)(config, run))


def _tiny_run(config: Config, directory: str, mesh: Mesh) -> Config:
    """Returns a run of one step per stage, with tiny networks and bundled data, in `directory`.

    Its devices, stages and losses are those of the run.
    """
    replace = dataclasses.replace
    tensor = math.gcd(mesh.shape["tensor"], TINY_TENSOR)
    shards = mesh.size // tensor
    chosen = config.stages
    if baselines.judged_by_untrained(config):  # in this run; that of another is not at hand
        chosen = ("offpolicy", *(stage for stage in chosen if stage != "offpolicy"))
    short = {
        stage: replace(getattr(config, stage), steps=1, discriminator_only_steps=0)
        for stage in chosen
    }
    short[chosen[0]] = replace(short[chosen[0]], keep_moments=False)
    if "dpo" in short:  # the bundled rows have no rejected answers
        short["dpo"] = replace(short["dpo"], rejected="snapshot", answers=1)
    return replace(
        config,
        stage=",".join(chosen),
        run_dir=directory,
        export=False,
        student=replace(config.student, path="random-tiny"),
        discriminator=replace(
            config.discriminator,
            path="",
            replay_share=0.5 if config.discriminator.replay_share else 0.0,
            replay_pool=0,
        ),
        lora=replace(config.lora, adapter=""),
        reward=config.reward.rehearsed(),
        data=replace(
            config.data,
            train="bundled",
            heldout="",
            max_prompt_tokens=256,
            stop_at_dropped_share=1.0,
            stop_at_cut_share=1.0,
            rejected="",
        ),
        batch=replace(config.batch, prompts=2 * shards, micro_batch_prompts=shards, row_tokens=0),
        rollout=replace(config.rollout, samples=2, max_new_tokens=16),
        mesh=replace(config.mesh, replica=mesh.shape["replica"], fsdp=0, tensor=tensor),
        profile=replace(config.profile, steps=""),
        tracking=replace(config.tracking, to=()),
        **short,
    )

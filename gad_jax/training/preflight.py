"""What can be known of a run before it begins: whether its parts fit each other and the machine."""

import dataclasses
import math

import jax
from jax.sharding import Mesh

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.distributed import devices, processes
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import memory
from gad_jax.settings.config import Config
from gad_jax.training import state
from gad_jax.training.checkpoint import Checkpoints

TINY_TENSOR = 2
"""The tiny network has so many key/value heads."""


def check(
    config: Config,
    networks: tuple[DecoderConfig, DecoderConfig],
    chat: Chat,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> None:
    """Says what the run needs, and raises an error where that is not there or where settings,
    tokenizer and networks do not fit: before any weight is read."""
    total, needed = map(
        max,
        zip(*(_state_bytes(config, stage, networks, mesh) for stage in config.stages), strict=True),
    )
    available = devices.device_memory()
    if needed > available:
        raise UserError(
            f"weights and moments alone take {needed / 1e9:.2f} GB of a device with "
            f"{available / 1e9:.2f} GB; use more devices for --mesh.fsdp or --mesh.tensor, or a "
            "smaller --student.path; python -m gad_jax.plan says what fits"
        )
    checkpoints.require_space(total)
    _check_sizes(config, networks, chat)
    cache = memory.check_cache(networks[0], config.rollout.slots, config.longest, mesh)
    if processes.is_first():
        print(
            f"weights and moments: {needed / 1e9:.2g} GB a device of {available / 1e9:.1f} GB; "
            f"a checkpoint: {total / 1e9:.2g} GB\n{cache}",
            flush=True,
        )


def _state_bytes(
    config: Config, stage: str, networks: tuple[DecoderConfig, DecoderConfig], mesh: Mesh
) -> tuple[int, int]:
    """Returns the bytes of a stage's state, in all and on one device."""
    program = state.make_program(config, stage, *networks)
    whole = state.abstract(config, stage, program, mesh)
    leaves = jax.tree.leaves(whole)
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return total, devices.device_bytes(whole)


def _check_sizes(config: Config, networks: tuple[DecoderConfig, DecoderConfig], chat: Chat) -> None:
    if chat.vocab_size > networks[0].vocabulary:
        raise UserError(
            f"{config.student.path}: the tokenizer knows {chat.vocab_size} tokens and the "
            f"network {networks[0].vocabulary}; use the tokenizer that belongs to the weights"
        )
    for network in networks:
        if config.longest > network.max_positions:
            raise UserError(
                f"data.max_prompt_tokens + rollout.max_new_tokens = {config.longest} is more than "
                f"the {network.max_positions} positions of {config.student.path}; lower one of them"
            )


def rehearsal(config: Config, directory: str, mesh: Mesh) -> Config:
    """Returns a run of one step per stage, with tiny networks and bundled data, in `directory`.

    Its devices, stages and losses are those of the run.
    """
    replace = dataclasses.replace
    tensor = math.gcd(mesh.shape["tensor"], TINY_TENSOR)
    shards = mesh.size // tensor
    short = {
        stage: replace(getattr(config, stage), steps=1, discriminator_only_steps=0)
        for stage in config.stages
    }
    return replace(
        config,
        run_dir=directory,
        export=False,
        student=replace(config.student, path="random-tiny"),
        discriminator=replace(config.discriminator, path=""),
        data=replace(config.data, train="bundled", heldout="", max_prompt_tokens=256),
        batch=replace(config.batch, prompts=2 * shards, micro_batch_prompts=shards, row_tokens=0),
        rollout=replace(config.rollout, samples=2, max_new_tokens=16),
        mesh=replace(config.mesh, replica=mesh.shape["replica"], fsdp=0, tensor=tensor),
        profile=replace(config.profile, steps=""),
        **short,
    )

"""Checks before a run begins: whether its parts fit each other and the machine."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gad_jax.base.errors import UserError
from gad_jax.core.program import Program
from gad_jax.data.chat import Chat
from gad_jax.distributed import devices, processes
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import memory
from gad_jax.settings.config import Config
from gad_jax.training import state
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.stages import Span


def check(
    config: Config,
    networks: tuple[DecoderConfig, DecoderConfig],
    spans: tuple[Span, ...],
    chat: Chat,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> None:
    """Prints what the run needs. Runs before any weight is read.

    Raises UserError or StorageError where memory or disk are too small, or where settings,
    tokenizer and networks do not fit each other.
    """
    sizes = [_state_bytes(span.program, mesh) for span in spans]
    total, needed = map(max, zip(*sizes, strict=True))
    available = devices.device_memory()
    if needed > available:
        raise UserError(
            f"weights and moments alone take {needed / 1e9:.2f} GB of a device with "
            f"{available / 1e9:.2f} GB; use more devices for --mesh.fsdp or --mesh.tensor, or a "
            "smaller --student.path; python -m gad_jax.plan says what fits"
        )
    checkpoints.require_space(
        total, _export_bytes(networks[0]) if config.export else 0, bool(config.data.heldout)
    )
    _check_sizes(config, networks, chat)
    cache = memory.check_cache(networks[0], config.rollout.slots, config.longest, mesh)
    if processes.is_first():
        print(
            f"weights and moments: {needed / 1e9:.2g} GB a device of {available / 1e9:.1f} GB; "
            f"a checkpoint: {total / 1e9:.2g} GB\n{cache}",
            flush=True,
        )
        print("\n".join(_steps(config, spans)), flush=True)


def _steps(config: Config, spans: tuple[Span, ...]) -> list[str]:
    """Returns how long the stages are, and a warning about one that trains no generator."""
    lengths = ", ".join(f"{span.stage} {span.end - span.start}" for span in spans)
    lines = [f"steps: {lengths}; {config.batch.prompts} prompts each"]
    for span in spans:
        steps = span.end - span.start
        both = span.program.train_generator and span.program.train_discriminator
        if both and span.discriminator_only_steps >= steps:
            lines.append(
                f"warning: {span.stage} trains the discriminator alone in all of its steps ({steps}"
                f"; --{span.stage}.discriminator_only_steps={span.discriminator_only_steps}); "
                "lower that, give more rows or lower --batch.prompts"
            )
    return lines


def _state_bytes(program: Program, mesh: Mesh) -> tuple[int, int]:
    """Returns the bytes of a stage's state, in all and on one device."""
    whole = state.abstract(program, mesh)
    leaves = jax.tree.leaves(whole)
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return total, devices.device_bytes(whole)


def _export_bytes(network: DecoderConfig) -> int:
    """Returns the size of the student's directory, nearly all of which are weights."""
    leaves = jax.tree.leaves(decoder.abstract(network))
    itemsize = jnp.dtype(network.stored_dtype).itemsize
    return sum(math.prod(leaf.shape) for leaf in leaves) * itemsize


def _check_sizes(config: Config, networks: tuple[DecoderConfig, DecoderConfig], chat: Chat) -> None:
    for network in networks:
        chat.check_vocabulary(network.vocabulary, config.student.path)
        if config.longest > network.max_positions:
            raise UserError(
                f"data.max_prompt_tokens + rollout.max_new_tokens = {config.longest} is more than "
                f"the {network.max_positions} positions of {config.student.path}; lower one of them"
            )

"""Checks before a run begins: whether its parts fit each other and the machine."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gad_jax.base import host_memory, verbosity
from gad_jax.base.errors import UserError
from gad_jax.base.shortage import gigabytes
from gad_jax.data import same_tokenizer
from gad_jax.data.chat import Chat
from gad_jax.distributed import devices, processes
from gad_jax.models import adapters, costs, source
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import memory
from gad_jax.rollout.engine import RolloutProgram
from gad_jax.settings.config import Config, with_limits
from gad_jax.training import ahead, bases, footprint, levers, profiler, replay, snapshots
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.footprint import Lengths, Need, Sizes
from gad_jax.training.rewards import models
from gad_jax.training.stages import Span

CLOSE = 0.95
"""A program that needs a larger share of the free memory is warned of."""
LESS = 0.9
"""Settings that ran out of memory need to be followed by some that need this share of it."""


def check(
    config: Config,
    networks: tuple[DecoderConfig, DecoderConfig],
    spans: tuple[Span, ...],
    chat: Chat,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> None:
    """Prints what the run needs, and sets whether checkpoints are written alongside the steps. Runs
    before any weight is read.

    Raises UserError or StorageError where memory or disk are too small, or where settings,
    tokenizer and networks do not fit each other.
    """
    _check_placement(config)
    profiler.check(config.profile.window, spans[-1].end)
    if config.student.matmul == "float8":
        devices.require_float8_here()
    sizes = [footprint.sizes(span.program, mesh) for span in spans]
    total = max(size.total for size in sizes)
    rewarding = models.networks(config, networks[0].compute_dtype)
    resident = footprint.rewarding_bytes(rewarding, mesh)
    base = footprint.base_bytes(config, networks, mesh)
    lines = [_check_state(sizes, base, resident)]
    lengths = expected_lengths(config, spans)
    pool, answers = _answer_bytes(config, networks[0].vocabulary, spans, lengths)
    checkpoints.require_space(
        total + pool + ahead.expected_bytes(config),
        _export_bytes(networks[0]) if config.export else 0,
        bool(config.data.heldout),
        sum(max(size - _stored(config, stage), 0) for stage, size in answers.items()),
    )
    _check_sizes(config, networks, chat)
    lines.append(memory.check_cache(networks[0], config.rollout.slots, config.longest, mesh))
    _check_evaluated(config, networks[0], mesh)
    hosted = max(size.host + size.host_update for size in sizes) * jax.local_device_count()
    on_host = pool + max(answers.values()) + hosted
    need = footprint.largest(config, networks, mesh, lengths, rewarding)
    copy = _copy_bytes(config, need, sizes, on_host)
    checkpoints.background = copy > 0
    lines.append(_check_memory(config, networks, lengths, mesh, rewarding, need, on_host, copy))
    lines += [*_hosted(hosted), *_saving(copy), *_adapters(config, networks)]
    lines += [*_rewarding(resident), *_replay(config, pool), *_answers(answers)]
    if processes.is_first():
        verbosity.say([*lines, *_steps(config, spans)])


def _check_state(sizes: list[Sizes], base: int, resident: int) -> str:
    """Returns what the state takes, with bases of adapters and reward models.

    Raises UserError where that alone is more than a device has."""
    needed = max(size.device for size in sizes) + base + resident
    what = "weights and moments" + (", reward models included," if resident else "")
    available = devices.device_memory()
    if needed > available:
        raise UserError(
            f"{what} alone take {needed / 1e9:.2f} GB of a device with "
            f"{available / 1e9:.2f} GB; use more devices for --mesh.fsdp or --mesh.tensor, or a "
            "smaller --student.path; python -m gad_jax.plan says what fits"
        )
    return (
        f"weights and moments: {needed / 1e9:.2g} GB a device of {available / 1e9:.1f} GB; "
        f"a checkpoint: {max(size.total for size in sizes) / 1e9:.2g} GB"
    )


def _copy_bytes(config: Config, need: Need, sizes: list[Sizes], kept: int) -> int:
    """Returns the bytes that the state of a save takes of this host while the next steps run; 0
    where they wait for the save. All processes get 0, or none.

    `sizes` are those of the stages' state, `kept` bytes of answers. On a CPU a step leaves the
    arrays of before where they are. Elsewhere Orbax copies them, and digests need a second copy.
    """
    local = max(size.device + size.host for size in sizes) * jax.local_device_count()
    free = CLOSE * host_memory.available()
    if devices.platform() == "cpu":
        copy, others = local, need.total * jax.local_device_count() + kept
    else:
        copy, others = 2 * min(local, max(size.total for size in sizes)), kept
    wanted = config.checkpoint.background
    if config.optimizer.placement == "host" and devices.platform() != "cpu":
        wanted = "off"  # a step changes the moments where they are
    fits = wanted == "on" or (wanted == "auto" and others + copy <= free)
    return copy if processes.all_of(fits) else 0


def _check_placement(config: Config) -> None:
    """Raises UserError where moments cannot be in the memory of the host."""
    name = "--optimizer.placement=host"
    if config.optimizer.placement == "device":
        return
    if jax.process_count() > 1:
        raise UserError(
            f"{name} is for runs of one process, and this one has {jax.process_count()}; leave it "
            "out, and use --optimizer.moments=float8 or more devices for --mesh.fsdp"
        )
    if not devices.has_host_memory():
        raise UserError(
            f"{name} needs devices that read memory of the host (pinned_host), and these, "
            f"{jax.devices()[0].device_kind}, do not; leave it out"
        )
    if config.checkpoint.background == "on" and devices.platform() != "cpu":
        raise UserError(
            f"{name} needs saves that the next step waits for, because it changes the moments in "
            "place; leave out --checkpoint.background=on"
        )


def _hosted(size: int) -> list[str]:
    """Returns what the moments take of the host. Raises UserError where a host with devices that
    have memory of their own has less free."""
    if not size:
        return []
    free = host_memory.available()
    if devices.platform() != "cpu" and size > free:
        raise UserError(
            f"--optimizer.placement=host takes {gigabytes(size)} of host memory, and "
            f"{gigabytes(free)} are free; add --optimizer.moments=float8, or leave it out"
        )
    return [
        f"moments on the host: {gigabytes(size)}, with the new ones of layers during an update; "
        "the device has those of a layer at a time"
    ]


def _saving(copy: int) -> list[str]:
    """Returns what saves take where the next steps do not wait for them."""
    return [f"the next steps run during a save, which takes {gigabytes(copy)}"] if copy else []


def _answer_bytes(
    config: Config, vocabulary: int, spans: tuple[Span, ...], lengths: Lengths
) -> tuple[int, dict[str, int]]:
    """Returns what the student's answers take on the host: of the replay pool, and by stage those
    sampled at its start."""
    length = float(lengths.responses.mean())
    rows = len(spans[0].batches.prepared)
    pool = replay.expected_bytes(config, vocabulary, rows, length)
    return pool, {s.stage: snapshots.expected_bytes(config, s, length) for s in spans}


def _rewarding(resident: int) -> list[str]:
    """Returns what the reward models take of a device."""
    return [f"reward models: {gigabytes(resident)} of these"] if resident else []


def _answers(expected: dict[str, int]) -> list[str]:
    """Returns what the student's answers take that stages sample at their start."""
    return [
        f"{stage}: the student's answers take about {gigabytes(size)} of host memory in each "
        "process and in the run directory, if they are as long as the teacher's"
        for stage, size in expected.items()
        if size
    ]


def _adapters(config: Config, networks: tuple[DecoderConfig, DecoderConfig]) -> list[str]:
    """Returns what is trained of each network with adapters, and at which rates."""
    lines = []
    for name, network in zip(("generator", "discriminator"), networks, strict=True):
        if network.lora is None:
            continue
        trained = sum(leaf.size for leaf in jax.tree.leaves(adapters.abstract(network)[1]))
        whole = costs.parameters(network.merged)
        rates = ", ".join(
            f"{stage} {getattr(options, f'{name}_learning_rate'):g}"
            + ("" if options.schedule == "constant" else f", falling to 0 ({options.schedule})")
            for stage, options in ((stage, getattr(config, stage)) for stage in config.stages)
        )
        lines.append(
            f"{name}: adapters of rank {network.lora.rank} on {', '.join(network.lora.targets)}, "
            f"{trained / 1e6:.3g} million parameters on a frozen base of {whole / 1e6:.4g}; "
            f"learning rates: {rates}"
        )
    return lines


def _stored(config: Config, stage: str) -> int:
    """Returns the bytes of the answers that the run has for a stage."""
    parts = (Path(config.run_dir) / snapshots.DIRECTORY / stage).glob("*.npz")
    return sum(part.stat().st_size for part in parts)


def _replay(config: Config, pool: int) -> list[str]:
    """Returns what the student's older answers take, in a run that replays some."""
    options, samples = config.discriminator, config.rollout.samples
    if not pool:
        return []
    return [
        f"replay: up to {options.replayed(samples)} of {samples} samples in D's batch are older "
        f"answers; the newest {options.kept(samples)} of each prompt take about {gigabytes(pool)} "
        "of host memory in each process and in a checkpoint, if they are as long as the teacher's"
    ]


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


def expected_lengths(config: Config, spans: tuple[Span, ...]) -> Lengths:
    """Returns the lengths of the run's first step, with samples as long as the teacher's text."""
    batch = spans[-1].batches[0]
    prompts = np.asarray([len(prompt) for prompt in batch.prompts])
    responses = np.asarray([len(response) for response in batch.responses])
    return Lengths(prompts, np.repeat(responses[:, None], config.rollout.samples + 1, axis=1))


def advice(
    config: Config,
    networks: tuple[DecoderConfig, DecoderConfig],
    spans: tuple[Span, ...],
    rollout: RolloutProgram,
    mesh: Mesh,
) -> str:
    """Returns what to set after memory ran out in a run, though it may have seemed to fit."""
    config = with_limits(config, rollout.longest - rollout.max_new_tokens, rollout.max_new_tokens)
    lengths = expected_lengths(config, spans)
    rewarding = models.networks(config, networks[0].compute_dtype)
    needed = footprint.largest(config, networks, mesh, lengths, rewarding).total
    room = min(int(devices.device_memory() * CLOSE), int(needed * LESS))
    return levers.advice(config, networks, mesh, lengths, room, rewarding)


def _check_memory(
    config: Config,
    networks: tuple[DecoderConfig, DecoderConfig],
    lengths: Lengths,
    mesh: Mesh,
    rewarding: models.Networks,
    need: Need,
    kept: int,
    copy: int,
) -> str:
    """Returns a sentence on the largest program, by estimate, and a warning if it is a close fit.
    Bytes on the host take the same memory on a CPU: `kept` of answers, `copy` of a save.

    Raises UserError where it is larger than the memory, unless the settings ask for a warning.
    """
    there, source = devices.device_memory(), "a device has"
    # On a CPU, what the process holds already (libraries) counts too.
    held = copied = 0
    if devices.platform() == "cpu":
        limit = host_memory.limit()
        source = f"{limit.source} gives a device"
        copied = copy // jax.local_device_count()
        held = (host_memory.used() + kept) // jax.local_device_count() + copied
    said = (
        f"{need.program} needs about {gigabytes(need.total + held)} a device by estimate, and "
        f"{source} {gigabytes(there)}"
    )
    short = need.total + held - there
    if short > 0:
        if short <= copied:
            what = "--checkpoint.background=off, with which steps wait for saves, fits"
        else:
            what = levers.advice(config, networks, mesh, lengths, there - held, rewarding)
        said = f"{said}, {gigabytes(short)} too little; {what}"
        if config.limits.memory == "refuse":
            raise UserError(f"{said}; --limits.memory=warn tries all the same")
        return f"warning: {said}"
    free = host_memory.available() // jax.local_device_count() if held else there
    if need.total + copied > CLOSE * free:
        return f"warning: {said}, of which {gigabytes(free)} are free; it may run out of memory"
    return f"largest program: {said}"


def _export_bytes(network: DecoderConfig) -> int:
    """Returns the size of the student's directory, nearly all of which are weights."""
    return costs.parameters(network.merged) * jnp.dtype(network.stored_dtype).itemsize


def _check_evaluated(config: Config, network: DecoderConfig, mesh: Mesh) -> None:
    """Raises UserError where the cache of held-out answers does not fit, or where they may be
    longer than the student's positions allow."""
    if not config.longest_evaluated:
        return
    advice = "lower --evaluation.max_new_tokens, --evaluation.batch_prompts or --rollout.slots"
    slots = min(config.rollout.slots or memory.default_slots(), config.evaluated_at_once)
    memory.check_cache(network, slots, config.longest_evaluated, mesh, advice)
    positions = network.max_positions
    if config.longest_evaluated > positions:
        raise UserError(
            f"data.max_prompt_tokens + evaluation.max_new_tokens = {config.longest_evaluated} is "
            f"more than the {positions} positions of {config.student.path}; lower "
            f"--evaluation.max_new_tokens to {positions - config.data.max_prompt_tokens} or less"
        )


def _check_sizes(config: Config, networks: tuple[DecoderConfig, DecoderConfig], chat: Chat) -> None:
    for network in networks:
        name = bases.path_of(config, network)
        chat.check_vocabulary(network.vocabulary, name)
        if config.longest > network.max_positions:
            raise UserError(
                f"data.max_prompt_tokens + rollout.max_new_tokens = {config.longest} is more than "
                f"the {network.max_positions} positions of {name}; lower one of them"
            )
    judge = bases.discriminator_path(config)
    if judge != config.student.path and (
        found := same_tokenizer.difference(chat, source.resolve(judge))
    ):
        raise UserError(
            f"--discriminator.path={judge} has another tokenizer than the student: {found}; both "
            "networks read the same token ids, so name a model of the student's family"
        )

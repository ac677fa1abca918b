"""The training state: how it starts, how a stage begins, and its shapes for a checkpoint to fill.

A stage begins with fresh optimizer moments for the networks that it trains, or keeps those that
there are. It gets a reference if it pays the KL term or is DPO, and a discriminator if it needs one
and no earlier stage had one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from gad_jax.core.hosted import Hosted
from gad_jax.core.optimizer import adamw
from gad_jax.core.program import Program
from gad_jax.core.rewards import Mix
from gad_jax.distributed import devices, sharding
from gad_jax.models import adapters, decoder, source, splitting, weights
from gad_jax.models.config import DecoderConfig
from gad_jax.settings import config as settings
from gad_jax.settings import sections
from gad_jax.training import bases, randomness
from gad_jax.types import Params, TrainState


def make_program(
    config: settings.Config, stage: str, generator: DecoderConfig, discriminator: DecoderConfig
) -> Program:
    """Returns what the steps of a stage are compiled for."""
    options: sections.Stage = getattr(config, stage)
    grpo, judge = config.grpo, config.discriminator
    so_far = config.stages[: config.stages.index(stage) + 1]
    return Program(
        generator=generator,
        discriminator=discriminator,
        generator_optimizer=adamw(config.optimizer, options.generator_learning_rate),
        discriminator_optimizer=adamw(config.optimizer, options.discriminator_learning_rate),
        discriminator_objective=judge.objective,
        accuracy_gate=judge.accuracy_gate,
        label_smoothing=judge.label_smoothing,
        length_debias=judge.length_debias,
        drop_flat_groups=grpo.drop_flat_groups,
        pessimism=judge.pessimism,
        train_generator=options.train_generator,
        train_discriminator=config.trains_discriminator(stage),
        has_discriminator=any(map(config.uses_discriminator, so_far)),
        has_reference=_has_reference(config, stage),
        vocabulary_chunk=vocabulary_chunk(config),
        temperature=config.rollout.temperature,
        clip_low=grpo.clip_low,
        clip_high=grpo.clip_high,
        dual_clip=grpo.dual_clip,
        kl_coefficient=grpo.kl_coefficient,
        kl_max=grpo.kl_max,
        log_ratio_max=grpo.log_ratio_max,
        entropy_coefficient=grpo.entropy_coefficient,
        advantage_epsilon=grpo.advantage_epsilon,
        advantage_scale=grpo.advantage_scale,
        keep_moments=options.keep_moments,
        reward=_mix(config) if stage == "gad" else None,
        dpo_beta=config.dpo.beta,
        dpo_sft_coefficient=config.dpo.sft_coefficient,
        importance_max=grpo.importance_max,
        behaviour="sampler" if stage == "gad" and config.rollout.ahead else "trained",
    )


def _has_reference(config: settings.Config, stage: str) -> bool:
    """Returns whether a stage compares the student with its weights at the stage's start."""
    if stage == "custom":
        return config.custom.reference
    return stage == "dpo" or (stage == "gad" and config.grpo.kl_coefficient > 0)


def vocabulary_chunk(config: settings.Config) -> int:
    """Returns the positions of a data shard whose logits are in memory at a time.

    Every chunk adds to the float32 gradient of the whole vocabulary projection, which an
    accelerator's caches do not hold. So where that is trained, larger chunks are the default.
    """
    trained = config.lora.rank_of("generator") == 0
    larger = {"tpu": 2048, "gpu": 4096} if trained else {}
    return config.batch.vocabulary_chunk or larger.get(devices.platform(), 512)


def _mix(config: settings.Config) -> Mix | None:
    """Returns how the terms of the reward are mixed; None where D's score alone is the reward."""
    reward = config.reward
    weights = tuple(term.weight for term in reward.terms)
    return Mix(reward.discriminator, weights, reward.normalise, reward.clip) if weights else None


def load(
    config: settings.Config,
    network: DecoderConfig,
    mesh: Mesh,
    taken: Callable[[], Params] | None = None,
) -> TrainState:
    """Returns the state before the first stage: the student's weights or adapters, and nothing
    else yet.

    `taken` returns weights of another run in place of those in the directory."""
    if network.lora is not None:
        generator = bases.fresh_adapters(config, network, mesh)
    else:
        directory = source.resolve(config.student.path)
        generator = taken() if taken else weights.load(directory, mesh)[1]
    return TrainState(
        step=devices.put(np.int32(0), mesh),
        key=_put_key(config.seed, mesh),
        generator=generator,
        generator_optimizer=None,
        discriminator=None,
        discriminator_optimizer=None,
        reference=None,
        skips=devices.put(np.zeros(2, np.int32), mesh),
    )


def begin_stage(
    state: TrainState, program: Program, mesh: Mesh, load_discriminator: Callable[[], Params]
) -> TrainState:
    """Returns the state at the first step of a stage.

    `load_discriminator` is called where the stage needs a discriminator and none has come from an
    earlier one. What only the stage before needed is deleted first, also for others that hold the
    state: next to the new moments it would be the most that a run holds.
    """
    moments_before = state.generator_optimizer, state.discriminator_optimizer
    over = state.reference, None if program.keep_moments else moments_before
    jax.tree.map(lambda leaf: leaf.delete(), over)
    discriminator = state.discriminator
    if discriminator is None and program.has_discriminator:
        discriminator = load_discriminator()

    def moments(optimizer: optax.GradientTransformation, params: Any, before: Any) -> Any:
        if program.keep_moments and before is not None:
            return before
        if isinstance(optimizer, Hosted):
            # Not made on the device: it may be too small for all of them.
            return jax.tree.map(devices.zeros, _moments(optimizer, params, mesh))
        return jax.jit(optimizer.init)(params)

    generator = program.generator_optimizer, state.generator, state.generator_optimizer
    other = program.discriminator_optimizer, discriminator, state.discriminator_optimizer
    return state._replace(
        generator_optimizer=moments(*generator) if program.train_generator else None,
        discriminator=discriminator,
        discriminator_optimizer=moments(*other) if program.train_discriminator else None,
        reference=_copy(state.generator) if program.has_reference else None,
        skips=devices.put(np.zeros(2, np.int32), mesh),
    )


def _moments(optimizer: optax.GradientTransformation, params: Any, mesh: Mesh) -> Any:
    """Returns the optimizer's state as shapes with shardings, in the memory that it is for."""
    shapes = sharding.with_shardings(jax.eval_shape(optimizer.init, params), mesh)

    def one(leaf: Any) -> Any:
        where = devices.on_host(leaf.sharding) if leaf.ndim else leaf.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(one, shapes) if isinstance(optimizer, Hosted) else shapes


def abstract(program: Program, mesh: Mesh) -> TrainState:
    """Returns the state inside a stage as shapes with shardings, for a checkpoint to fill."""
    for each in (program.generator, program.discriminator):
        splitting.check(each, mesh)

    def network(config: DecoderConfig) -> Any:
        return sharding.placed(adapters.abstract(config)[1], mesh)

    def moments(optimizer: optax.GradientTransformation, params: Any) -> Any:
        return _moments(optimizer, params, mesh)

    everywhere = NamedSharding(mesh, jax.sharding.PartitionSpec())

    def scalar(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    key = jax.eval_shape(lambda: jax.random.key(0))
    generator = network(program.generator)
    discriminator = network(program.discriminator) if program.has_discriminator else None
    return TrainState(
        step=scalar((), jnp.int32),
        key=scalar((), key.dtype),
        generator=generator,
        generator_optimizer=(
            moments(program.generator_optimizer, generator) if program.train_generator else None
        ),
        discriminator=discriminator,
        discriminator_optimizer=(
            moments(program.discriminator_optimizer, discriminator)
            if program.train_discriminator
            else None
        ),
        reference=network(program.generator) if program.has_reference else None,
        skips=scalar((2,), jnp.int32),
    )


def load_discriminator(
    config: settings.Config,
    network: DecoderConfig,
    mesh: Mesh,
    taken: Callable[[], Params] | None = None,
) -> Params:
    """Returns what is trained of the discriminator, at its start; a fresh head unless the weights
    have one.

    `taken` is as for `load`."""
    directory = source.resolve(bases.discriminator_path(config))
    if network.lora is not None:
        params = bases.fresh_adapters(config, network, mesh)
        if weights.read_config(directory).head == "score":
            _, head = weights.load(directory, mesh, wanted=lambda path: path.startswith("score/"))
            params |= head
    elif taken:
        params = {name: part for name, part in taken().items() if name != "head"}
    else:
        _, params = weights.load(directory, mesh, wanted=bases.belongs(network))
    if "score" not in params:
        key = randomness.head_key(config.seed)
        head = decoder.init_score(network, key, config.discriminator.head_stddev)
        params["score"] = devices.put(jax.device_get(head), mesh)
    return params


@jax.jit
def _copy(params: Params) -> Params:
    return jax.tree.map(jnp.copy, params)


def _put_key(seed: int, mesh: Mesh) -> jax.Array:
    words = jax.random.key_data(jax.random.key(seed))
    return jax.random.wrap_key_data(devices.put(jax.device_get(words), mesh))

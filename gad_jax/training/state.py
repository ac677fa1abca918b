"""The training state: how it starts, how a stage begins, and its shapes for a checkpoint to fill.

A stage begins with fresh optimizer moments for the networks that it trains, or keeps those that
there are. It gets a reference if it pays the KL term or is DPO, and a discriminator if it needs one
and no earlier stage had one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from gad_jax.base.errors import UserError
from gad_jax.core.hosted import Hosted
from gad_jax.core.optimizer import adamw
from gad_jax.core.program import Program
from gad_jax.core.rewards import Mix
from gad_jax.distributed import devices, sharding
from gad_jax.models import adapters, decoder, source, splitting, weights
from gad_jax.models.config import DecoderConfig, Lora
from gad_jax.settings import config as settings
from gad_jax.settings import sections
from gad_jax.training import bases, randomness
from gad_jax.types import Params, TrainState

PADDING = 1024
"""Embeddings of one tokenizer may have so many more rows, for tokens without a text: those of
Qwen2.5 have 151,936 or 152,064, by size."""


def read_network(name: str) -> DecoderConfig:
    """Returns the shape of the network called `name`, as in `--student.path`."""
    return weights.read_config(source.resolve(name))


def network_configs(
    config: settings.Config, read: Callable[[str], DecoderConfig] = read_network
) -> tuple[DecoderConfig, DecoderConfig]:
    """Returns the configs of generator and discriminator, read from their directories.

    Raises UserError when their vocabularies differ by more than padding: both read the same token
    ids. Whether their tokenizers agree is for `preflight`.
    """
    computing = _computing(config.student)
    generator = read(config.student.path)
    generator = dataclasses.replace(generator, **computing)
    if generator.head != "vocabulary":
        raise UserError(
            f"--student.path={config.student.path} is a sequence classifier; name a causal "
            "language model"
        )
    generator = dataclasses.replace(generator, decode_weights=config.rollout.weights)
    discriminator = read(bases.discriminator_path(config))
    if abs(discriminator.vocabulary - generator.vocabulary) > PADDING:
        raise UserError(
            f"--discriminator.path={config.discriminator.path} has a vocabulary of "
            f"{discriminator.vocabulary} and the student one of {generator.vocabulary}; both must "
            "share a tokenizer"
        )
    _check_experts(config, generator, discriminator)
    heads = config.discriminator.heads
    if heads > 1 and discriminator.head == "score":
        raise UserError(
            f"--discriminator.path={config.discriminator.path} has a score head, and "
            f"--discriminator.heads={heads} start as new ones; name a causal language model, or "
            "leave out --discriminator.heads"
        )
    discriminator = dataclasses.replace(discriminator, head="score", score_heads=heads, **computing)
    return _with_lora(config, generator), _with_lora(config, discriminator)


def _computing(options: sections.Student) -> dict[str, Any]:
    """Returns the fields of a network's config that say how it is computed."""
    if options.unroll and devices.platform() == "cpu":
        raise UserError(
            "--student.unroll=true puts an update into one graph of a GPU; on a CPU it takes a "
            "third more memory and saves no time; leave it out"
        )
    compute_dtype: str = options.compute_dtype
    if compute_dtype == "auto":
        compute_dtype = "float32" if devices.platform() == "cpu" else "bfloat16"
    return {
        "compute_dtype": compute_dtype,
        "matmul": options.matmul,
        "remat": options.remat,
        "unroll": options.unroll,
    }


def _check_experts(
    config: settings.Config, generator: DecoderConfig, discriminator: DecoderConfig
) -> None:
    """Raises UserError for rounding that mixtures of experts do not have."""
    chosen = {
        "rollout.weights": (config.rollout.weights, (generator,)),
        "student.matmul": (config.student.matmul, (generator, discriminator)),
    }
    for name, (value, networks) in chosen.items():
        mixture = next((network for network in networks if network.experts), None)
        if mixture and value != "auto":
            raise UserError(
                f"--{name}={value} rounds no experts, which are most of a mixture of family "
                f"{mixture.family!r}; give --{name}=auto"
            )


def _with_lora(config: settings.Config, network: DecoderConfig) -> DecoderConfig:
    """Returns the network with the adapters of the settings."""
    options = config.lora
    rank = options.rank_of("discriminator" if network.head == "score" else "generator")
    if not rank:
        return network
    dense = [name for name in options.targets if name in ("gate", "up", "down")]
    if network.experts and dense:
        raise UserError(
            f"--lora.targets names {', '.join(dense)}, which are experts in a mixture of family "
            f"{network.family!r}, and adapters are for attention there; give "
            "--lora.targets=query,key,value,output"
        )
    if network.experts and options.is_quantised:
        raise UserError(
            f"--lora.base_dtype={options.base_dtype} quantises no experts, which are most of a "
            f"mixture of family {network.family!r}; give --lora.base_dtype=bfloat16"
        )
    quantisation = options.base_dtype if options.is_quantised else "none"
    lora = Lora(rank, options.alpha, options.targets)
    return dataclasses.replace(network, lora=lora, quantisation=quantisation)


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

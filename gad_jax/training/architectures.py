"""The networks of a run by its settings: generator and discriminator, before any weight is read."""

import dataclasses
from collections.abc import Callable
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.distributed import devices
from gad_jax.models import source, weights
from gad_jax.models.config import DecoderConfig, Lora
from gad_jax.settings import config as settings
from gad_jax.settings import sections
from gad_jax.training import bases

PADDING = 1024
"""Embeddings of one tokenizer may have so many more rows, for tokens without a text: those of
Qwen2.5 have 151,936 or 152,064, by size."""


def read(name: str) -> DecoderConfig:
    """Returns the shape of the network called `name`, as in `--student.path`."""
    return weights.read_config(source.resolve(name))


def configs(
    config: settings.Config, read: Callable[[str], DecoderConfig] = read
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
    check_experts(config, generator, discriminator)
    heads = config.discriminator.heads
    if heads > 1 and discriminator.head == "score":
        raise UserError(
            f"--discriminator.path={config.discriminator.path} has a score head, and "
            f"--discriminator.heads={heads} start as new ones; name a causal language model, or "
            "leave out --discriminator.heads"
        )
    discriminator = dataclasses.replace(discriminator, head="score", score_heads=heads, **computing)
    return _with_lora(config, generator), _with_lora(config, discriminator)


def check_devices(config: settings.Config) -> None:
    """Raises UserError for what makes nothing faster on the devices that train.

    A run that trained elsewhere is still read here, for evaluation or export.
    """
    on_cpu = devices.platform() == "cpu"
    if config.student.unroll and on_cpu:
        raise UserError(
            "--student.unroll=true puts an update into one graph of a GPU; on a CPU it takes a "
            "third more memory and saves no time; leave it out"
        )
    for flag in _in_bfloat16(config):
        if not on_cpu:
            raise UserError(
                f"{flag} is for CPUs; a GPU or TPU computes in --student.compute_dtype, which is "
                "bfloat16 there; leave it out"
            )
        if config.student.compute_dtype == "bfloat16":
            raise UserError(
                f"{flag} rounds nothing that --student.compute_dtype=bfloat16 has left in float32; "
                "leave one of them out"
            )


def warnings(config: settings.Config) -> list[str]:
    """Returns a sentence on what is to make a run faster, and may make it slower here."""
    flags = " and ".join(_in_bfloat16(config))
    if not flags or devices.cpu_multiplies_bfloat16():
        return []
    return [
        f"warning: {flags} may take longer on this processor, which has no instructions for "
        "bfloat16 (amx_bf16 or avx512_bf16); compare with python -m gad_jax.bench"
    ]


def _in_bfloat16(config: settings.Config) -> list[str]:
    """Returns the flags that round what a CPU computes in float32."""
    chosen = {"rollout.weights": config.rollout.weights, "student.matmul": config.student.matmul}
    return [f"--{name}=bfloat16" for name, value in chosen.items() if value == "bfloat16"]


def _computing(options: sections.Student) -> dict[str, Any]:
    """Returns the fields of a network's config that say how it is computed."""
    compute_dtype: str = options.compute_dtype
    if compute_dtype == "auto":
        compute_dtype = "float32" if devices.platform() == "cpu" else "bfloat16"
    return {
        "compute_dtype": compute_dtype,
        "matmul": options.matmul,
        "remat": options.remat,
        "unroll": options.unroll,
    }


def check_experts(
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

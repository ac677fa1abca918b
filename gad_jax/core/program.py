"""The static part of the compiled steps."""

import dataclasses
from typing import Literal

import optax

from gad_jax.models.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Program:
    """What a stage's steps are compiled for."""

    generator: DecoderConfig
    discriminator: DecoderConfig
    generator_optimizer: optax.GradientTransformationExtraArgs
    discriminator_optimizer: optax.GradientTransformationExtraArgs
    discriminator_objective: Literal["bradley_terry", "cross_entropy"]
    vocabulary_chunk: int
    temperature: float
    clip_low: float
    clip_high: float
    dual_clip: float
    kl_coefficient: float
    kl_max: float
    log_ratio_max: float
    entropy_coefficient: float
    advantage_epsilon: float
    train_discriminator: bool = True

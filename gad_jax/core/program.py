"""The static part of the compiled steps."""

import dataclasses
from typing import Literal

import optax

from gad_jax.core.optimizer import Schedule
from gad_jax.core.rewards import Mix
from gad_jax.models.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Program:
    """What the steps of one stage are compiled for, and which parts of the state the stage needs.

    `has_discriminator` is True also where an earlier stage trained one: it stays in the state.
    `has_reference` is True where the stage compares G with the weights at the stage's start (the KL
    term of GAD, DPO), so that the state holds them. With `keep_moments` it begins with the
    optimizers of the stage before. Without a `schedule`, learning rates are constant. `reward` is
    None where D's score alone is the reward. `dpo_` are those of the settings' section. With an
    `importance_max` of 0 there are no importance weights. `behaviour` says which weights count as
    those that drew the samples: the ones that are trained, so that the policy's ratio is 1, or the
    sampler's, which were older (`losses.grpo_loss`).
    """

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
    accuracy_gate: float = 1.0
    label_smoothing: float = 0.0
    length_debias: bool = False
    advantage_scale: Literal["group", "none"] = "group"
    drop_flat_groups: bool = False
    pessimism: float = 0.0
    train_generator: bool = True
    train_discriminator: bool = True
    has_discriminator: bool = True
    has_reference: bool = True
    keep_moments: bool = False
    schedule: Schedule | None = None
    reward: Mix | None = None
    dpo_beta: float = 0.1
    dpo_sft_coefficient: float = 0.0
    importance_max: float = 0.0
    behaviour: Literal["trained", "sampler"] = "trained"

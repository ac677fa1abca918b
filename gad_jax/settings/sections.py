"""The sections of a run's settings, as frozen dataclasses that validate at construction.

Defaults are the paper's (arXiv:2511.10643) or, where the paper is silent, those of its released
scripts.
"""

import datetime
from dataclasses import dataclass
from typing import Literal

from gad_jax.settings.checks import require, require_at_least_zero, require_positive, require_text
from gad_jax.settings.fields import option


@dataclass(frozen=True)
class Student:
    """The model that learns, and how both networks are computed."""

    path: str = option(
        "smollm2-135m-instruct",
        "local Hugging Face directory, hub id (org/name), smollm2-135m-instruct or random-tiny",
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "dtype of activations and matrix products; auto: bfloat16, on a CPU float32"
    )
    remat: Literal["full", "dots", "none"] = option(
        "full",
        "what the backward pass recomputes of a layer: everything, all but products, nothing",
    )

    def __post_init__(self) -> None:
        require_text(self, "path")


@dataclass(frozen=True)
class Discriminator:
    """The second network: scores [prompt, response] with a scalar head."""

    path: str = option("", "model it starts from, as in --student.path; empty: the student's")
    objective: Literal["bradley_terry", "cross_entropy"] = option(
        "bradley_terry", "its loss; cross_entropy is the paper's ablation"
    )
    head_stddev: float = option(0.02, "standard deviation of the fresh head's weights")

    def __post_init__(self) -> None:
        # A head of zeros pays every sample the same, so the generator's first gradient is zero.
        require_positive(self, "head_stddev")


@dataclass(frozen=True)
class Data:
    """Teacher text and how it becomes prompts."""

    train: str = option(
        "bundled",
        "teacher rows: JSONL or Parquet file, a directory of them or a hub dataset (ORG/NAME), "
        "both with :SPLIT if it is not train, or 'bundled'; or several of them, as "
        "a.jsonl=0.7,b.jsonl=0.3, the numbers being shares of the prompts",
    )
    heldout: str = option("bundled:heldout", "rows for evaluation, as above; empty: no evaluation")
    template: Literal["alpaca", "none"] = option(
        "alpaca", "wrapper of the instruction inside the user turn (the paper uses alpaca)"
    )
    max_prompt_tokens: int = option(2048, "longer prompts are dropped and counted", "tokens")
    skip_invalid: bool = option(False, "skip and count malformed rows instead of stopping")
    keep_unfinished: bool = option(
        False, "train on collected responses that were cut or refused; they are left out otherwise"
    )
    max_invalid_share: float = option(
        0.01, "with skip_invalid, stop if a larger share of the rows is malformed"
    )

    def __post_init__(self) -> None:
        require_text(self, "train")
        require_positive(self, "max_prompt_tokens")
        share = self.max_invalid_share
        require(0 <= share <= 1, f"max_invalid_share={share} must be in [0, 1]")


@dataclass(frozen=True)
class Batch:
    """The size of a step and how it is laid out in memory."""

    prompts: int = option(256, "prompts drawn per step", "prompts")
    micro_batch_prompts: int = option(
        0, "prompts whose gradient is computed at once; 0: all of them", "prompts"
    )
    row_tokens: int = option(
        0,
        "length of a packed row, at least the longest prompt and response together; "
        "0: that sum, rounded up to 128",
        "tokens",
    )
    vocabulary_chunk: int = option(
        512, "positions of a data shard whose logits exist at one time", "tokens"
    )

    def __post_init__(self) -> None:
        require_positive(self, "prompts", "vocabulary_chunk")
        require_at_least_zero(self, "micro_batch_prompts", "row_tokens")
        micro = self.micro_batch_prompts or self.prompts
        require(
            self.prompts % micro == 0,
            f"micro_batch_prompts={micro} does not divide prompts={self.prompts}; "
            "use a divisor, so that micro-batches hold whole groups",
        )


@dataclass(frozen=True)
class Rollout:
    """How the student answers during training."""

    samples: int = option(8, "responses per prompt: the GRPO group", "responses")
    temperature: float = option(0.8, "sampling temperature")
    top_k: int = option(0, "sample from the k likeliest tokens; 0: all", "tokens")
    top_p: float = option(1.0, "sample from the likeliest tokens of this total probability")
    max_new_tokens: int = option(
        1536, "a longer response is cut, and ends without an end token", "tokens"
    )
    slots: int = option(
        0, "responses sampled at once on a data shard; 0: 32 on a CPU, else 64", "responses"
    )

    def __post_init__(self) -> None:
        require_positive(self, "temperature", "max_new_tokens")
        require_at_least_zero(self, "top_k", "slots")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must be in (0, 1]")
        require(
            self.samples >= 2,
            f"samples={self.samples} must be 2 or more: an advantage compares samples of one group",
        )


@dataclass(frozen=True)
class Optimizer:
    """AdamW with a constant learning rate (set per stage) and a global-norm clip."""

    beta1: float = option(0.9, "decay of the first moment")
    beta2: float = option(0.999, "decay of the second moment")
    epsilon: float = option(1e-8, "added to the root of the second moment")
    weight_decay: float = option(0.01, "decoupled weight decay")
    max_gradient_norm: float = option(0.2, "global norm to which a larger gradient is scaled")
    max_skips: int = option(
        10, "stop after this many steps in a row were skipped for a non-finite gradient", "steps"
    )

    def __post_init__(self) -> None:
        require_positive(self, "epsilon", "max_gradient_norm", "max_skips")
        require_at_least_zero(self, "weight_decay")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name}={value} must be in [0, 1)")


@dataclass(frozen=True)
class Grpo:
    """The generator's loss in the GAD stage, as in the released scripts of the paper."""

    clip_low: float = option(0.2, "the probability ratio is clipped below at 1 - clip_low")
    clip_high: float = option(0.2, "the probability ratio is clipped above at 1 + clip_high")
    dual_clip: float = option(3.0, "bound on the loss of a negative advantage, in advantages")
    kl_coefficient: float = option(
        0.001, "weight of the k3 KL to the stage's first weights; 0 skips the reference pass"
    )
    kl_max: float = option(10.0, "bound on the k3 estimate of one token", "nats")
    log_ratio_max: float = option(20.0, "bound on log-probability differences", "nats")
    entropy_coefficient: float = option(0.0, "weight of an entropy bonus")
    advantage_epsilon: float = option(1e-6, "added to a group's standard deviation")

    def __post_init__(self) -> None:
        require_positive(self, "kl_max", "log_ratio_max", "advantage_epsilon")
        require_at_least_zero(self, "kl_coefficient", "entropy_coefficient")
        require(0 <= self.clip_low < 1, f"clip_low={self.clip_low} must be in [0, 1)")
        require_at_least_zero(self, "clip_high")
        require(self.dual_clip > 1, f"dual_clip={self.dual_clip} must be greater than 1")


@dataclass(frozen=True)
class Stage:
    """One stage of training; a stage starts with fresh optimizer moments."""

    epochs: float = option(1.0, "passes over the training rows", "epochs")
    steps: int = option(0, "steps instead of epochs; 0: as many as epochs gives", "steps")
    generator_learning_rate: float = option(1e-6, "constant learning rate of the generator")
    discriminator_learning_rate: float = option(1e-6, "constant learning rate of the discriminator")
    discriminator_only_steps: int = option(
        0, "first steps that train the discriminator alone; none if it is frozen", "steps"
    )
    train_generator: bool = option(True, "false freezes the generator")
    train_discriminator: bool = option(True, "false freezes the discriminator")

    def __post_init__(self) -> None:
        require_positive(self, "epochs")
        require_at_least_zero(
            self,
            "steps",
            "generator_learning_rate",
            "discriminator_learning_rate",
            "discriminator_only_steps",
        )
        require(
            self.train_generator or self.train_discriminator,
            "train_generator and train_discriminator are both false; nothing would learn",
        )


@dataclass(frozen=True)
class Evaluation:
    """Greedy answers to held-out prompts, compared with the teacher's."""

    every: int = option(50, "steps between evaluations in a stage; 0: only at its ends", "steps")
    prompts: int = option(0, "held-out prompts to use; 0: all", "prompts")
    max_new_tokens: int = option(0, "longest answer; 0: as --rollout.max_new_tokens", "tokens")
    batch_prompts: int = option(64, "prompts answered at once", "prompts")
    examples: int = option(4, "prompts shown side by side, in console and TensorBoard", "prompts")

    def __post_init__(self) -> None:
        require_at_least_zero(self, "every", "prompts", "max_new_tokens", "examples")
        require_positive(self, "batch_prompts")


@dataclass(frozen=True)
class Checkpoint:
    """What is kept to resume from, and which step counts as the best."""

    every: int = option(50, "steps between checkpoints", "steps")
    every_minutes: float = option(30.0, "also save after this time; 0: by steps alone", "minutes")
    must_save_by: str = option(
        "",
        "time by which the run must have saved and stopped, as 2027-01-31T18:00; empty: the end of "
        "the Slurm job, if it is one",
    )
    margin_minutes: float = option(
        5.0, "how long before that time the run begins to save, a step's time ahead", "minutes"
    )
    keep: int = option(2, "newest checkpoints kept", "checkpoints")
    keep_best: bool = option(
        True, "also keep the checkpoint with the best evaluation of acceptable length"
    )
    best_metric: Literal["rouge_l", "ngram_1", "ngram_2", "ngram_3", "ngram_4"] = option(
        "rouge_l", "what makes an evaluation the best: overlap with the teacher's held-out answers"
    )
    best_min_length_ratio: float = option(
        0.5, "acceptable: mean answer at least this many times the teacher's mean length; 0: any"
    )
    best_max_length_ratio: float = option(
        1.5, "acceptable: mean answer at most this many times the teacher's mean length"
    )

    def __post_init__(self) -> None:
        require_positive(self, "every", "keep", "best_max_length_ratio")
        require_at_least_zero(self, "every_minutes", "margin_minutes", "best_min_length_ratio")
        low, high = self.best_min_length_ratio, self.best_max_length_ratio
        require(low < high, f"best_min_length_ratio={low} must be less than the maximum, {high}")
        try:
            datetime.datetime.fromisoformat(self.must_save_by or "2027-01-31")
        except ValueError:
            require(False, f"must_save_by={self.must_save_by!r} must be as 2027-01-31T18:00")


@dataclass(frozen=True)
class Mesh:
    """The device mesh; the product of its axes is the number of devices."""

    replica: int = option(1, "copies of the weights; the batch is split over them", "devices")
    fsdp: int = option(0, "devices sharing one copy of the weights; 0: all that remain", "devices")
    tensor: int = option(1, "devices that split each matrix product", "devices")

    def __post_init__(self) -> None:
        require_positive(self, "replica", "tensor")
        require_at_least_zero(self, "fsdp")


@dataclass(frozen=True)
class Limits:
    """When a run that does not go on is ended, instead of waiting for ever."""

    step_minutes: float = option(
        30.0, "a longer step ends the run with the stacks of its threads; 0: never", "minutes"
    )
    other_minutes: float = option(
        120.0, "the same for start-up, compiling, restoring, evaluating, saving", "minutes"
    )
    heartbeat_seconds: int = option(60, "a process silent for longer is taken for dead", "seconds")
    join_seconds: int = option(
        300, "longest wait for the other processes at the start and at the end", "seconds"
    )

    def __post_init__(self) -> None:
        require_at_least_zero(self, "step_minutes", "other_minutes")
        require_positive(self, "heartbeat_seconds", "join_seconds")


@dataclass(frozen=True)
class Profile:
    """Where the time of some steps goes."""

    steps: str = option("", "first and last step to trace, as 3:5; empty: none", "steps")

    def __post_init__(self) -> None:
        require(
            not self.steps or (self.window[0] > 0 and self.window[0] <= self.window[1]),
            f"steps={self.steps!r} must be FIRST:LAST, as 3:5, counting from 1",
        )

    @property
    def window(self) -> tuple[int, int]:
        """The first and the last step; (0, 0) for none or what is not understood."""
        first, _, last = self.steps.partition(":")
        return (int(first), int(last)) if first.isdigit() and last.isdigit() else (0, 0)

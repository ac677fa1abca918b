"""The stages that GAD is compared with: DPO on pairs, and rejection sampling. Imports no jax.

SeqKD is one too; its section is that of every stage (`sections.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gad_jax.settings.fields import FieldError, option
from gad_jax.settings.sections import Stage

if TYPE_CHECKING:
    from gad_jax.settings.config import Config


@dataclass(frozen=True)
class Dpo(Stage):
    """DPO (arXiv:2305.18290) of the teacher's response over rejected ones; SODA with a snapshot."""

    rejected: Literal["snapshot", "column"] = option(
        "snapshot",
        "what the teacher's response is preferred to: snapshot: the student's own answers, sampled "
        "once at the stage's start (SODA); column: a column of the rows (--data.rejected)",
    )
    answers: int = option(
        1, "answers to each prompt in the snapshot", "responses", above=0, maximum=1024
    )
    beta: float = option(
        0.1,
        "weight of the log-ratios to the stage's first weights; larger: closer to them",
        above=0,
    )
    sft_coefficient: float = option(
        0.0, "weight of the cross-entropy on the teacher's response that is added", minimum=0
    )


def snapshot_samples(config: "Config", stage: str) -> int:
    """Returns how many answers to each prompt a stage samples once, at its start; 0: none."""
    if stage == "dpo":
        return config.dpo.answers if config.dpo.rejected == "snapshot" else 0
    return config.rollout.samples if stage == "rejection" else 0


def rejected(config: "Config") -> int:
    """Returns how many responses DPO compares with the teacher's, for each prompt."""
    return snapshot_samples(config, "dpo") or 1


def responses(config: "Config", stage: str) -> int:
    """Returns how many responses to each prompt the largest rows of a stage's update hold."""
    if stage == "dpo":
        return 1 + rejected(config)
    if stage in ("gad", "custom") or config.trains_discriminator(stage):
        return 1 + config.rollout.samples
    return 1


def samples(config: "Config", stage: str) -> int:
    """Returns how many answers to each prompt a stage samples, at its start or in every step."""
    every_step = stage == "gad" or (stage == "custom" and config.custom.rollout)
    if every_step or getattr(config, stage).train_discriminator:
        return config.rollout.samples
    return snapshot_samples(config, stage)


def most_samples(config: "Config") -> int:
    """Returns the most answers to a prompt that some stage of the run samples; 0: none samples."""
    return max(samples(config, stage) for stage in config.stages)


def reads_rejected(config: "Config") -> bool:
    """Returns whether the run needs rejected responses in its rows."""
    return "dpo" in config.stages and config.dpo.rejected == "column"


def check(config: "Config") -> None:
    """Raises FieldError for baselines that other settings forbid, and for scores of a discriminator
    that nobody trains."""
    if reads_rejected(config) and config.dpo.answers != Dpo().answers:
        raise FieldError(
            "dpo.answers",
            f"dpo.answers={config.dpo.answers} samples a snapshot, and dpo.rejected=column reads "
            "the rows instead; leave one of them out",
            "dpo.rejected",
        )
    for name, stage in (("dpo", config.dpo), ("rejection", config.rejection)):
        if stage.train_discriminator or not stage.train_generator:
            raise FieldError(
                f"{name}.train_discriminator",
                f"{name} trains the generator alone; use the warmup or offpolicy stage to train a "
                "discriminator",
                f"{name}.train_generator",
            )
    if config.data.rejected and not reads_rejected(config):
        raise FieldError(
            "data.rejected",
            f"data.rejected={config.data.rejected} is read by --stage=dpo --dpo.rejected=column "
            "alone; give both, or leave it out",
            "stage",
            "dpo.rejected",
        )
    stage = judged_by_untrained(config)
    if stage and not config.discriminator.path:
        needs = {"rejection": "chooses samples by", "gad": "does not train, but is paid by,"}[stage]
        there = "warmup" in config.stages[: config.stages.index(stage)]
        use = "--warmup.train_discriminator=true" if there else f"--stage=warmup,{stage}"
        raise FieldError(
            "stage",
            f"stage={config.stage!r}: {stage} {needs} a trained discriminator, and no stage before "
            f"it trains one; use {use}, or name a run that has one with --discriminator.path=RUN",
        )


def judged_by_untrained(config: "Config") -> str:
    """Returns the first stage that reads the scores of a discriminator which neither it nor a stage
    before it trains; '' if there is none."""
    for number, stage in enumerate(config.stages, 1):
        trained = map(config.trains_discriminator, config.stages[:number])
        if config.uses_discriminator(stage) and not any(trained):
            return stage
    return ""

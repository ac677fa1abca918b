"""Which steps belong to which stage, and when one is followed by an evaluation."""

import dataclasses
import math

from gad_jax.core.optimizer import Schedule
from gad_jax.core.program import Program
from gad_jax.data import epochs
from gad_jax.data.epochs import PromptBatches
from gad_jax.data.pipeline import Prepared
from gad_jax.models.config import DecoderConfig
from gad_jax.settings.config import Config
from gad_jax.settings.sections import Stage
from gad_jax.training import randomness, state


@dataclasses.dataclass(frozen=True)
class Span:
    """The steps [start, end) of a run that belong to one stage, and what they need.

    `step` of the methods counts the steps that are done, as the run's state does.
    """

    stage: str
    start: int
    end: int
    batches: PromptBatches
    program: Program
    discriminator_only_steps: int
    custom_rollout: bool = True
    """Whether the student answers prompts in the stage custom."""

    @property
    def samples_student(self) -> bool:
        """Whether the student answers prompts: for the discriminator, or for its own reward."""
        custom = self.stage == "custom" and self.custom_rollout
        return self.program.train_discriminator or self.stage == "gad" or custom

    def is_discriminator_only(self, step: int) -> bool:
        """Returns whether the next step is one of the stage's first, which train D alone."""
        is_early = step - self.start < self.discriminator_only_steps
        return is_early and self.program.train_discriminator

    def evaluation_due(self, step: int, every: int) -> str:
        """Returns the label of the evaluation after a step of the stage, '' if there is none."""
        if step == self.end:
            return f"after {self.stage}"
        return f"step {step}" if every and step % every == 0 else ""


def spans(
    config: Config, data: Prepared, networks: tuple[DecoderConfig, DecoderConfig]
) -> tuple[Span, ...]:
    """Returns the spans of the run's stages; each shuffles the rows with its own seed."""
    found: list[Span] = []
    start = 0
    for stage in config.stages:
        options: Stage = getattr(config, stage)
        seed = randomness.order_seed(config.seed, stage)
        batches = epochs.batches(data, prompts_per_step=config.batch.prompts, seed=seed)
        end = start + (options.steps or math.ceil(options.epochs * batches.steps_per_epoch))
        program = state.make_program(config, stage, *networks)
        if options.schedule != "constant":
            schedule = Schedule(start, end, options.schedule)
            program = dataclasses.replace(program, schedule=schedule)
        only = options.discriminator_only_steps
        span = Span(stage, start, end, batches, program, only, config.custom.rollout)
        found.append(span)
        start = end
    return tuple(found)

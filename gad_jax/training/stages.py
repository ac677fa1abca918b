"""Which steps belong to which stage, and when one is followed by an evaluation."""

import dataclasses
import math

import numpy as np

from gad_jax.data import pipeline
from gad_jax.data.pipeline import Prepared, PromptBatches
from gad_jax.settings.config import STAGES, Config
from gad_jax.settings.sections import Stage


@dataclasses.dataclass(frozen=True)
class Span:
    """The steps [start, end) of the run that belong to a stage, and the stage's batches."""

    stage: str
    start: int
    end: int
    batches: PromptBatches

    def evaluation_due(self, step: int, every: int) -> str:
        """Returns the label of the evaluation after a step of the stage, '' if there is none."""
        if step == self.end:
            return f"after {self.stage}"
        return f"step {step}" if every and step % every == 0 else ""


def spans(config: Config, data: Prepared) -> tuple[Span, ...]:
    """Returns the spans of the run's stages; each shuffles the rows with a seed of its own."""
    spans: list[Span] = []
    start = 0
    for stage in config.stages:
        options: Stage = getattr(config, stage)
        seeds = np.random.SeedSequence([config.seed, STAGES.index(stage)])
        batches = pipeline.batches(
            data, prompts_per_step=config.batch.prompts, seed=int(seeds.generate_state(1)[0])
        )
        length = options.steps or math.ceil(options.epochs * batches.steps_per_epoch)
        spans.append(Span(stage, start, start + length, batches))
        start += length
    return tuple(spans)

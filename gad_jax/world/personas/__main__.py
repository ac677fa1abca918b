"""`python -m gad_jax.world.personas`: exact KLs of a pretrained student and its teacher.

The teacher is the student's own network under hidden system prompts, one persona drawn for each
answer. So its log-probabilities are known exactly, and no method sees them. From the same teacher
text each method trains a student with low-rank adapters and no system prompt, by `gad_jax.train`.
"""

import dataclasses
import sys
from typing import Any

from gad_jax.base import exits
from gad_jax.settings import options
from gad_jax.settings.fields import Checked, FieldError, option, section
from gad_jax.settings.sections import Columns
from gad_jax.world.personas.methods import METHODS, Entry, entries


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What `--small` changes; a setting that is not 0 takes precedence."""

    seeds: int
    train_prompts: int
    answers: int
    heldout: int
    samples: int
    max_new_tokens: int


USUAL = Sizes(seeds=3, train_prompts=304, answers=2, heldout=96, samples=8, max_new_tokens=48)
SMALL = Sizes(seeds=1, train_prompts=64, answers=1, heldout=24, samples=4, max_new_tokens=24)


def _size(name: str, says: str, unit: str) -> Any:
    usual, small = getattr(USUAL, name), getattr(SMALL, name)
    return option(0, f"{says}; 0: {usual}, or {small} with --small", unit, minimum=0)


@dataclasses.dataclass(frozen=True)
class Personas(Checked):
    """How large the experiment is."""

    out: str = option(
        "runs/personas",
        "directory for everything; the same command resumes there",
        filled=True,
        location=True,
    )
    small: bool = option(False, "a trial, too small for conclusions")
    methods: str = option(
        "all",
        f"comma-separated, of {', '.join(METHODS)}; or all; NAME@RATE sets the generator's rate",
        filled=True,
    )
    first_seed: int = option(0, "the first of the seeds", minimum=0, maximum=2**31)
    seeds: int = _size(
        "seeds", "repetitions, each with its own answers, order and samples", "seeds"
    )
    model: str = option(
        "smollm2-135m-instruct", "the teacher's network and the student's, a model", filled=True
    )
    personas: str = option(
        "",
        "JSON Lines file of hidden prompts (name, share, system); empty: three built-in ones",
        location=True,
    )
    teacher_temperature: float = option(
        0.7, "sampling temperature of the teacher, part of its distribution", minimum=0.01
    )
    prompts: str = option(
        "", "rows with prompts, as for training; empty: the bundled ones", location=True
    )
    data: Columns = section(Columns, "columns of the file with prompts")
    train_prompts: int = _size("train_prompts", "prompts of training", "prompts")
    answers: int = _size("answers", "teacher answers to each of them", "answers")
    heldout: int = _size("heldout", "other prompts, for the measurement", "prompts")
    samples: int = _size("samples", "answers of student and teacher to each of those", "answers")
    max_new_tokens: int = _size("max_new_tokens", "longer answers are cut, all of them", "tokens")
    training: str = option(
        "personas", "configuration of the runs, as --config of gad_jax.train", location=True
    )
    flags: str = option("", "more flags of all runs, separated by spaces")

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = SMALL if self.small else USUAL
        for field in dataclasses.fields(Sizes):
            if not getattr(self, field.name):
                object.__setattr__(self, field.name, getattr(sizes, field.name))
        if self.heldout < 4:
            raise FieldError(
                "heldout", f"heldout={self.heldout} must be 4 or more: a half is split once more"
            )
        try:
            _ = self.entries
        except ValueError as error:
            raise FieldError("methods", str(error)) from None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The methods to run."""
        return entries(self.methods)

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    personas = options.parse(
        Personas,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.world.personas",
        description="SeqKD, GAD and others against a teacher whose log-probabilities are known.",
    )

    def run() -> int:
        from gad_jax.world.personas import experiment

        return experiment.run(personas)

    return exits.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m gad_jax.toy`: why GAD finds one mode where maximum likelihood covers both.

The teacher is a mixture of two Gaussians over ten classes, the student one discretised Gaussian,
the discriminator a table of ten scores. That is small enough to check every claim exactly.
"""

import dataclasses
import sys
from pathlib import Path

from gad_jax.base import exits
from gad_jax.settings import options
from gad_jax.settings.fields import FieldError, option


@dataclasses.dataclass(frozen=True)
class Toy:
    """Where the student starts, and how long it learns."""

    mean: float = option(2.5, "mean at the start; the classes are 0 to 9")
    stddev: float = option(1.0, "standard deviation at the start")
    steps: int = option(3000, "steps of SeqKD, and of GAD after its warm-up", "steps")
    discriminator_only_steps: int = option(200, "first steps of the discriminator alone", "steps")
    prompts: int = option(256, "groups per step", "prompts")
    samples: int = option(8, "responses per group", "responses")
    generator_learning_rate: float = option(0.01, "of the student (Adam)")
    discriminator_learning_rate: float = option(10.0, "of the table of scores (SGD)")
    seed: int = option(0, "seed of the sampling", minimum=-(2**31), maximum=2**32 - 1)
    figure: str = option(
        "runs/toy.png", "image to write: png, svg or pdf by its suffix; empty: none", location=True
    )

    def __post_init__(self) -> None:
        for name in ("steps", "prompts"):
            if getattr(self, name) < 1:
                raise FieldError(name, f"{name}={getattr(self, name)} must be 1 or more")
        if self.samples < 2:
            raise FieldError(
                "samples", f"samples={self.samples} must be 2 or more: a group is compared"
            )
        if self.discriminator_only_steps < 0:
            raise FieldError(
                "discriminator_only_steps",
                f"discriminator_only_steps={self.discriminator_only_steps} must be 0 or more",
            )
        for name in ("stddev", "generator_learning_rate", "discriminator_learning_rate"):
            if getattr(self, name) <= 0:
                raise FieldError(name, f"{name}={getattr(self, name)} must be greater than 0")
        if self.figure and Path(self.figure).suffix not in (".png", ".svg", ".pdf"):
            raise FieldError("figure", f"figure={self.figure} must end in .png, .svg or .pdf")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    toy = options.parse(
        Toy,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.toy",
        description="The paper's toy experiment: two modes, and a student with room for one.",
    )

    def run() -> int:
        from gad_jax.toy import command

        return command.run(toy)

    return exits.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())

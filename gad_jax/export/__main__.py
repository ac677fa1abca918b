"""`python -m gad_jax.export RUN`: a run's networks as Hugging Face directories."""

import dataclasses
import sys
from typing import Literal

from gad_jax.base import exits
from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.fields import option


@dataclasses.dataclass(frozen=True)
class Export:
    """What to write, and where."""

    run: str = option(
        dataclasses.MISSING,
        "run directory (its newest checkpoint), or RUN@best, RUN@last, RUN@STEP",
        positional=True,
    )
    out: str = option("", "directory to write into; empty: RUN/export", location=True)
    part: Literal["all", "student", "discriminator"] = option("all", "which network")
    dtype: Literal["same", "float32", "bfloat16"] = option(
        "same", "of the weights; same: as in the model that the run started from"
    )
    push: str = option(
        "",
        "upload to ORG/NAME of the Hugging Face hub; with both networks, the discriminator goes to "
        "ORG/NAME-discriminator",
    )
    public: bool = option(False, "a repository that --push makes is public; else private")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    export = options.parse(
        Export,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.export",
        description=(
            "Writes a run's student, and its discriminator as a reward model with one label, as "
            "directories that transformers and vLLM load."
        ),
    )

    def run() -> int:
        if export.public and not export.push:
            raise UserError("--public is about --push: give --push=ORG/NAME too")
        from gad_jax.export import command

        return command.run(export)

    return exits.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())
